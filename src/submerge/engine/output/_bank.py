"""The bank of a gate: parts of all tensors, and heads, as one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from submerge.engine.plan import MergePlan
from submerge.engine.work import EditedSource
from submerge.store import (
    BankParts,
    BankTensor,
    Checkpoint,
    FileTable,
    Source,
    TensorEntry,
    TensorRecord,
    write_bank,
)

__all__ = ["file_source", "gate_bank", "parameter_values", "trained_values", "write_bank_tensors"]


def write_bank_tensors(folder: Path, tensors: Iterable[BankTensor]) -> dict[str, TensorRecord]:
    """Write a bank into `folder`; return what submerge.json says of each of its tensors.

    Empty where there is nothing to write.
    """
    items = list(tensors)
    if not items:
        return {}
    shard, digests = write_bank(folder, items)
    return {
        name: TensorRecord(entry.dtype, entry.shape, digests[name]) for name, entry in shard.entries.items()
    }


def gate_bank(plan: MergePlan, parts: BankParts) -> Iterator[BankTensor]:
    """Yield the bank of a method's gate, from the parts that its tensors have.

    `tasks.T.TENSOR.left`, `.values` and `.right` are the factors of task T's update of a tensor, `.whole` is
    a dense update, `merged.TENSOR` is what the checkpoint adds to the base's values where the factors do not
    determine it, and `heads.T.TENSOR` is a tensor of the task's own.
    """
    yield from _updates(plan, parts)
    yield from _heads(plan)


def _updates(plan: MergePlan, parts: BankParts) -> Iterator[BankTensor]:
    for index, tensor in enumerate(plan.tensors):
        if tensor.is_copy:
            continue
        for name, entry in sorted(parts.entries(index).items(), key=lambda item: _order(item[0])):
            task, _, kind = name.partition(".")
            key = f"tasks.{task}.{tensor.name}.{kind}" if kind else f"{name}.{tensor.name}"
            yield BankTensor(key, entry, file_source(entry))


def _order(name: str) -> tuple[int, str]:
    task, _, kind = name.partition(".")
    return (int(task), kind) if kind else (-1, name)


def file_source(entry: TensorEntry) -> Callable[[FileTable], Source]:
    """Return what opens an entry of a file to be read."""
    return lambda table: table.source(entry)


def trained_values(key: str, model: Checkpoint, name: str) -> BankTensor:
    """Return a parameter as it was trained: with what the model's adapter does to it."""
    edited = model.adapter is not None and name in model.adapter.parts
    return parameter_values(key, model, name, model if edited else None)


def parameter_values(key: str, model: Checkpoint, name: str, editor: Checkpoint | None = None) -> BankTensor:
    """Return all of a parameter: its bytes, or what the editor's adapter makes of them."""
    opened: Callable[[FileTable], Source]
    if editor is None:
        opened = partial(model.source, name)
    else:
        opened = partial(EditedSource, model, editor, name)
    return BankTensor(key, model.tensors[name], opened)


def _heads(plan: MergePlan) -> Iterator[BankTensor]:
    assert plan.gate is not None
    for number, task in enumerate(plan.gate.tasks):
        model = plan.models[task.model]
        for name, entry in sorted(task.head.items()):
            if entry.file is not None:
                yield BankTensor(f"heads.{number}.{name}", entry, file_source(entry))
                continue
            key = next(n for n, e in model.tensors.items() if e is entry)
            yield BankTensor(f"heads.{number}.{name}", entry, partial(model.source, key))
