"""Models with adapters laid over them, and adapters among themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    has no place for. With `other_shapes` what the adapter has in another shape than the base is a tensor of
    the result of that shape, without values. Raises `RequestError` if the adapter does not fit.
    """
    stored = {(modules or {}).get(name, name): name for name in base.tensors}
    own_heads = _heads(adapter, list(stored)) if heads else _untied_heads(adapter, base) if untie else {}
    adapter = replace(adapter, parts={n: p for n, p in adapter.parts.items() if n not in own_heads})
    shapes = {name: base.tensors[old].shape for name, old in stored.items()}
    fitted = fit_adapter(adapter, shapes, other_shapes=other_shapes)
    parts = {stored[name]: part for name, part in fitted.parts.items()}
    replaced = {name: part for name, part in parts.items() if isinstance(part, Replace)}
    new = replaced | own_heads
    unfit = {
        stored[name]: TensorEntry(stored[name], base.tensors[stored[name]].dtype, shape, None, 0, 0)
        for name, shape in fitted.unfit.items()
    }
    memory = {name: adapter.memory[part.entry.name] for name, part in new.items() if adapter.memory}
    entries = {name: replace(part.entry, name=name) for name, part in new.items()}
    return replace(
        base,
        label=label,
        tensors={**base.tensors, **entries, **unfit},
        memory={**base.memory, **memory},
        under=base,
        adapter=replace(
            fitted,
            parts={name: part for name, part in parts.items() if name not in new},
            names={stored[name]: own for name, own in fitted.names.items()},
            replaced=frozenset(replaced.keys() - own_heads.keys()),
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
    heads = {}
    for name, part in adapter.parts.items():
        if isinstance(part, Replace):
            try:
                match_names([name], available, "")
            except RequestError:
                heads[name] = part
    return heads


def side_by_side(adapters: Sequence[Adapter]) -> list[Checkpoint]:
    """Return a base that is not there, and after it each adapter as a model over that base.

    The base has every parameter that an adapter updates, under the first name that it has, and no values.
    Raises `RequestError` where a part is no low-rank update, or where shapes differ.
    """
    _check_forms(adapters)
    names = same_parameters([list(adapter.parts) for adapter in adapters])
    union = _Union()
    for adapter, common_names in zip(adapters, names, strict=True):
        union.add(adapter, common_names)
    if union.problems:
        raise RequestError(union.problems)
    base = Checkpoint("", adapters[0].path, None, union.entries, {})
    return [base, *(_alone(base, a, parts) for a, parts in zip(adapters, union.parts, strict=True))]


def _check_forms(adapters: Sequence[Adapter]) -> None:
    """Raise `RequestError` where names of one form do not tell those of another."""
    forms = {adapter.form: adapter for adapter in adapters}
    if "kohya" in forms and len(forms) > 1:
        other = next(adapter for form, adapter in forms.items() if form != "kohya")
        what = f"has kohya's names of modules, which do not tell those of {other.label}"
        hint = "add 'base_model: …', whose names both stand for"
        raise RequestError(Problem(what, str(forms["kohya"].path), hint))


@dataclass
class _Union:
    """The parameters that several adapters update, each adapter's parts under their names, and problems.

    `owners` names the adapter that a parameter's shape is from.
    """

    entries: dict[str, TensorEntry] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    parts: list[dict[str, Part]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, adapter: Adapter, common_names: Mapping[str, str]) -> None:
        """Add an adapter, whose parameters go by other names here."""
        parts: dict[str, Part] = {}
        dense: dict[str | None, list[str]] = {}
        for name, part in adapter.parts.items():
            why = adapter.dense_only(name)
            if why is not None or not isinstance(part, LowRankPart):
                dense.setdefault(why, []).append(name)
                continue
            common = common_names[name]
            shape = self.entries.setdefault(
                common, TensorEntry(common, part.left_entry.dtype, part.stored, None, 0, 0)
            ).shape
            owner = self.owners.setdefault(common, adapter.label)
            if shape != part.stored:
                what = f"{name} is {list(part.stored)} here and {list(shape)} in {owner}"
                self.problems.append(Problem(what, str(adapter.path), "merge adapters of one base"))
            parts[common] = part
        self.parts.append(parts)
        for why, listed in dense.items():
            what = f"{few(listed)} {'is' if len(listed) == 1 else 'are'} no low-rank update: {why}"
            hint = (
                "name the base that it was trained on as base_model, so that its values can be read; heads "
                "of different tasks are kept side by side by merge_method: mass"
            )
            self.problems.append(Problem(what, str(adapter.path), hint))


def _alone(base: Checkpoint, adapter: Adapter, parts: Mapping[str, Part]) -> Checkpoint:
    """Return an adapter as a model over a base without values."""
    return replace(
        base,
        label=adapter.label,
        path=adapter.path,
        revision=adapter.revision,
        adapter=replace(adapter, parts=parts),
        pending=adapter.pending,
    )
