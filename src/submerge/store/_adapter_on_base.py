"""Models with adapters laid over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from submerge.names import has_match
from submerge.store._aliases import find_aliases
from submerge.store._checkpoint import Checkpoint
from submerge.store._trained_rows import own_tables
from submerge.store.adapter import Adapter, Replace, fit_adapter
from submerge.store.format import FileTable, InMemory, TensorEntry, read_elements

__all__ = ["lay_over", "trained_adapter"]


def lay_over(
    base: Checkpoint,
    adapter: Adapter,
    label: str,
    modules: Mapping[str, str] | None = None,
    *,
    heads: bool = False,
    untie: bool = False,
    other_shapes: bool = False,
    other_rows: bool = False,
) -> Checkpoint:
    """Return the model that `adapter` makes of `base`, called `label`.

    Tensors that the adapter replaces are its own; what it does to others is in the result's `adapter`,
    under the base's names. `modules` gives, for tensors that are loaded under another name than they are
    saved, that name. With `untie` an output head whose values the adapter saves, and that the base ties to
    its embeddings, is a tensor of the result besides; with `heads` so are all new tensors that the base
    has no place for. With `other_shapes` what the adapter has in another shape than the base is a tensor of
    the result of that shape, without values; with `other_rows` a table that it saves whole may have another
    number of rows. A table that it saves beside what it trained of it is compared with the base's: where that
    is another, as after a vocabulary was resized, what was saved counts, as in PEFT. Raises `RequestError` if
    the adapter does not fit.
    """
    stored = {(modules or {}).get(name, name): name for name in base.tensors}
    own_heads = (
        _new_tensors(adapter, list(stored)) if heads else _untied_heads(adapter, base) if untie else {}
    )
    adapter = replace(adapter, parts={n: p for n, p in adapter.parts.items() if n not in own_heads})
    shapes = {name: base.tensors[old].shape for name, old in stored.items()}
    fitted = fit_adapter(adapter, shapes, other_shapes=other_shapes, other_rows=other_rows)
    parts = {stored[name]: part for name, part in fitted.parts.items()}
    replaced = {name: part for name, part in parts.items() if isinstance(part, Replace)}
    tables = own_tables(base, fitted, parts)
    new = replaced | own_heads
    unfit = {
        stored[name]: TensorEntry(stored[name], base.tensors[stored[name]].dtype, shape, None, 0, 0)
        for name, shape in fitted.unfit.items()
    }
    memory = {
        name: adapter.memory[part.entry.name]
        for name, part in new.items()
        if part.entry.name in adapter.memory
    }
    entries = {name: replace(part.entry, name=name) for name, part in new.items()}
    entries |= {name: entry for name, (entry, _) in tables.items()}
    return replace(
        base,
        label=label,
        tensors={**base.tensors, **entries, **unfit},
        memory={**base.memory, **memory},
        computed={**base.computed, **{name: rows for name, (_, rows) in tables.items()}},
        under=base,
        adapter=replace(
            fitted,
            parts={name: part for name, part in parts.items() if name not in entries},
            names={stored[name]: own for name, own in fitted.names.items()},
            replaced=frozenset({*replaced, *tables} - own_heads.keys()),
            folded={name: parts[name] for name in tables},
        ),
        pending=base.pending or adapter.pending,
    )


def trained_adapter(model: Checkpoint) -> Adapter | None:
    """Return a model's adapter with all that was trained: the values, too, that are the model's own now."""
    adapter = model.adapter
    if adapter is None:
        return None
    saved = {name: Replace(model.tensors[name]) for name in adapter.replaced}
    memory = {**adapter.memory, **model.memory, **_computed(model, adapter.replaced)}
    return replace(adapter, parts={**adapter.parts, **saved}, memory=memory)


def _computed(model: Checkpoint, names: Iterable[str]) -> dict[str, InMemory]:
    """Return the values of those tensors that no file has as they are, and no memory."""
    values: dict[str, InMemory] = {}
    with FileTable() as table:
        for name in names:
            entry = model.tensors[name]
            if entry.file is None and name not in model.memory:
                whole = read_elements(model.source(name, table), entry.dtype, 0, entry.numel)
                values[name] = whole.view(entry.shape)
    return values


def _untied_heads(adapter: Adapter, base: Checkpoint) -> dict[str, Replace]:
    """Return the output heads with values of their own that an adapter gives a base which ties them."""
    if adapter.config.get("ensure_weight_tying"):  # PEFT trains one parameter for both
        return {}
    saved = _new_tensors(adapter, list(base.tensors))
    if not any(len(part.entry.shape) > 1 for part in saved.values()):
        return {}
    shapes = base.shapes | {name: part.entry.shape for name, part in saved.items()}
    groups = find_aliases(base.config, shapes, ask=True).groups
    tied = {name for group in groups if base.tensors.keys() & set(group.names) for name in group.names}
    return {name: part for name, part in saved.items() if name in tied}


def _new_tensors(adapter: Adapter, available: Sequence[str]) -> dict[str, Replace]:
    """Return the tensors that an adapter saves and that stand for none of those that there are."""
    saved = {name: part for name, part in adapter.parts.items() if isinstance(part, Replace)}
    return {name: part for name, part in saved.items() if not has_match(name, available)}
