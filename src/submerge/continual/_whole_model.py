"""A task's model that is a whole checkpoint of the base's architecture: what of it differs from the base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from submerge.continual._stored_task import StoredMap
from submerge.deferred import torch
from submerge.engine.plan import is_matrix, stores_transposed
from submerge.engine.work import EditedSource
from submerge.errors import Problem, RequestError, few
from submerge.names import is_buffer, is_output_head, layer_of, module_names
from submerge.store import (
    Aligner,
    Alignment,
    Checkpoint,
    FileTable,
    Source,
    read_elements,
    same_values,
    torch_dtype,
)

__all__ = ["changed_tensors", "linear_maps", "read_values", "value_blocks"]

BLOCK = 1 << 24
"""Values that are compared, or merged, at a time."""


def read_values(model: Checkpoint, name: str, table: FileTable) -> torch.Tensor:
    """Return a tensor of a model, with what an adapter on it does to it."""
    entry = model.tensors[name]
    source: Source = (
        EditedSource(model, model, name, table) if model.part(name) else model.source(name, table)
    )
    return read_elements(source, entry.dtype, 0, entry.numel).view(entry.shape)


def value_blocks(
    sources: Sequence[tuple[Source, str]], numel: int
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Yield the values of several tensors of one size, some at a time, each in its dtype."""
    for start in range(0, numel, BLOCK):
        count = min(BLOCK, numel - start)
        blocks = [read_elements(source, dtype, start, count) for source, dtype in sources]
        yield slice(start, start + count), blocks


def changed_tensors(checkpoint: Checkpoint, base: Checkpoint) -> tuple[Alignment, list[str]]:
    """Return a checkpoint by the base's names, and which of its tensors differ from the base's.

    Raises `RequestError` where it is no model of the base's architecture and shapes.
    """
    aligned = Aligner(base).align(checkpoint)
    model = aligned.model
    floats = [name for name, entry in base.tensors.items() if entry.is_float]
    with FileTable() as table:
        if problems := list(_unlike(model, base, floats, aligned.refused, table)):
            raise RequestError(problems)
        return aligned, [name for name in floats if _differs(model, base, name, table)]


def _unlike(
    model: Checkpoint, base: Checkpoint, floats: Iterable[str], refused: Sequence[str], table: FileTable
) -> Iterator[Problem]:
    """Yield why a model is no fine-tune of the base."""
    hint = "a task is a fine-tune of the state's base, or an adapter of it"
    if refused:
        yield Problem(f"is another model than {base.label}: {refused[0]}", model.label, hint)
        return
    if missing := [name for name in floats if name not in model.tensors]:
        yield Problem(f"lacks {few(missing)}, which {base.label} has", model.label, hint)
    shapes = {
        name: (model.tensors[name].shape, base.tensors[name].shape)
        for name in floats
        if name in model.tensors
    }
    other = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    if other:
        name, (own, wanted) = next(iter(other.items()))
        what = f"{len(other)} tensors have other shapes than the base's: {name} has {list(own)}"
        yield Problem(f"{what}, but the base has {list(wanted)}", model.label, hint)
    new = [name for name in model.tensors if name not in base.tensors and not is_buffer(name)]
    if more := [name for name in new if not _is_tied_head(model, name, table)]:
        yield Problem(f"has {few(more)} besides, which {base.label} lacks", model.label, hint)


def _is_tied_head(model: Checkpoint, name: str, table: FileTable) -> bool:
    """Return whether a tensor is an output head with the values of the embeddings."""
    beside = (other for other in model.tensors if other != name and layer_of(other) is None)
    return is_output_head(name) and any(same_values(model, name, other, table) for other in beside)


def _differs(model: Checkpoint, base: Checkpoint, name: str, table: FileTable) -> bool:
    """Return whether a tensor has other values than the base's, to the precision of the narrower dtype."""
    sources = [(one.source(name, table), one.tensors[name].dtype) for one in (model, base)]
    narrow = min((torch_dtype(dtype) for _, dtype in sources), key=lambda dtype: dtype.itemsize)
    blocks = value_blocks(sources, base.tensors[name].numel)
    return any(not torch.equal(own.to(narrow), before.to(narrow)) for _, (own, before) in blocks)


def linear_maps(names: Iterable[str], base: Checkpoint) -> dict[str, StoredMap]:
    """Return those of a base's tensors that are weights of linear maps in its layers, by module."""
    spelled, transposed = module_names(base.config, base.tensors), stores_transposed(base)
    return {
        name.removesuffix(".weight"): StoredMap(spelled.get(name, name), transposed, 0)
        for name in sorted(names)
        if name.endswith(".weight")
        and layer_of(name) is not None
        and is_matrix(name, base.tensors[name].shape, base.config)
    }
