"""Models with adapters laid over them, and adapters among themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from submerge.errors import Problem, RequestError, few
from submerge.names import match_names, same_parameters
from submerge.store._aliases import find_aliases
from submerge.store._checkpoint import Checkpoint
from submerge.store.adapter import Adapter, LowRankPart, Part, Replace, fit_adapter
from submerge.store.format import TensorEntry

__all__ = ["lay_over", "side_by_side"]


def lay_over(
    base: Checkpoint,
    adapter: Adapter,
    label: str,
    modules: Mapping[str, str] | None = None,
    *,
    heads: bool = False,
    untie: bool = False,
    other_shapes: bool = False,
) -> Checkpoint:
    """Return the model that `adapter` makes of `base`, called `label`.

    Tensors that the adapter replaces are its own; what it does to others is in the result's `adapter`,
    under the base's names. `modules` gives, for tensors that are loaded under another name than they are
    saved, that name. With `untie` an output head whose values the adapter saves, and that the base ties to
    its embeddings, is a tensor of the result besides; with `heads` so are all new tensors that the base
    has no place for.
    With `other_shapes` what the adapter has in another shape than the base is a tensor of the result of that
    shape, without values. Raises `RequestError` if the adapter does not fit.
    """
    saved = {(modules or {}).get(name, name): name for name in base.tensors}
    own = _heads(adapter, list(saved)) if heads else _untied_heads(adapter, base) if untie else {}
    adapter = replace(adapter, parts={n: p for n, p in adapter.parts.items() if n not in own})
    shapes = {name: base.tensors[old].shape for name, old in saved.items()}
    fitted = fit_adapter(adapter, shapes, other_shapes=other_shapes)
    fitted = replace(
        fitted,
        parts={saved[name]: part for name, part in fitted.parts.items()},
        names={saved[name]: own for name, own in fitted.names.items()},
    )
    replaced = {n: p for n, p in fitted.parts.items() if isinstance(p, Replace)} | own
    new = {n: replace(p.entry, name=n) for n, p in replaced.items()}
    unfit = {
        saved[name]: TensorEntry(saved[name], base.tensors[saved[name]].dtype, shape, None, 0, 0)
        for name, shape in fitted.unfit.items()
    }
    memory = {n: adapter.memory[p.entry.name] for n, p in replaced.items() if adapter.memory}
    return replace(
        base,
        label=label,
        tensors={**base.tensors, **new, **unfit},
        memory={**base.memory, **memory},
        under=base,
        adapter=replace(
            fitted,
            parts={n: p for n, p in fitted.parts.items() if n not in new},
            whole=frozenset(new.keys() - own.keys()),
        ),
        pending=base.pending or adapter.pending,
    )


def _untied_heads(adapter: Adapter, base: Checkpoint) -> dict[str, Replace]:
    """Return the output heads with values of their own that an adapter gives a base which ties them."""
    if adapter.config.get("ensure_weight_tying"):  # PEFT trains one parameter for both
        return {}
    saved = {n: p for n, p in adapter.parts.items() if isinstance(p, Replace) and n not in base.tensors}
    if not any(len(part.entry.shape) > 1 for part in saved.values()):
        return {}
    shapes = {name: entry.shape for name, entry in base.tensors.items()}
    shapes |= {name: part.entry.shape for name, part in saved.items()}
    groups = find_aliases(base.config, shapes, ask=True).groups
    tied = {name for group in groups if base.tensors.keys() & set(group.names) for name in group.names}
    return {name: part for name, part in saved.items() if name in tied}


def _heads(adapter: Adapter, available: Sequence[str]) -> dict[str, Replace]:
    """Return the new tensors of an adapter that stand for none of those that there are."""
    found = {}
    for name, part in adapter.parts.items():
        if isinstance(part, Replace):
            try:
                match_names([name], available, "")
            except RequestError:
                found[name] = part
    return found


def side_by_side(adapters: Sequence[Adapter]) -> list[Checkpoint]:
    """Return a base that is not there, and after it each adapter as a model over that base.

    The base has every parameter that an adapter updates, under the first name that it has, and no values.
    Raises `RequestError` where a part is no low-rank update, or where shapes differ.
    """
    forms = {adapter.form: adapter for adapter in adapters}
    if "kohya" in forms and len(forms) > 1:
        other = next(adapter for form, adapter in forms.items() if form != "kohya")
        what = f"has kohya's names of modules, which do not tell those of {other.label}"
        hint = "add 'base_model: …', whose names both stand for"
        raise RequestError(Problem(what, str(forms["kohya"].path), hint))
    names = same_parameters([list(adapter.parts) for adapter in adapters])
    entries: dict[str, TensorEntry] = {}
    owners: dict[str, str] = {}
    problems: list[Problem] = []
    renamed: list[dict[str, Part]] = []
    for adapter, own in zip(adapters, names, strict=True):
        parts: dict[str, Part] = {}
        dense: dict[str | None, list[str]] = {}
        for name, part in adapter.parts.items():
            why = adapter.dense_only(name)
            if why is not None or not isinstance(part, LowRankPart):
                dense.setdefault(why, []).append(name)
                continue
            entry = TensorEntry(own[name], part.left_entry.dtype, part.stored, None, 0, 0)
            known = entries.setdefault(own[name], entry)
            owners.setdefault(own[name], adapter.label)
            if known.shape != entry.shape:
                what = f"{name} is {list(entry.shape)} here and {list(known.shape)} in {owners[own[name]]}"
                problems.append(Problem(what, str(adapter.path), "merge adapters of one base"))
            parts[own[name]] = part
        renamed.append(parts)
        for why, listed in dense.items():
            what = f"{'is' if len(listed) == 1 else 'are'} no low-rank update: {why}"
            hint = (
                "name the base that it was trained on as base_model, so that its values can be read; heads "
                "of different tasks are kept side by side by merge_method: mass"
            )
            problems.append(Problem(f"{few(listed)} {what}", str(adapter.path), hint))
    if problems:
        raise RequestError(problems)
    nothing = Checkpoint("", adapters[0].path, None, entries, {})
    return [nothing, *(_alone(nothing, a, parts) for a, parts in zip(adapters, renamed, strict=True))]


def _alone(nothing: Checkpoint, adapter: Adapter, parts: Mapping[str, Part]) -> Checkpoint:
    return replace(
        nothing,
        label=adapter.label,
        path=adapter.path,
        revision=adapter.revision,
        adapter=replace(adapter, parts=parts),
        pending=adapter.pending,
    )
