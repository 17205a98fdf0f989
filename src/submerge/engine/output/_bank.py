"""The bank of a gate: parts of all tensors, and heads, as one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from submerge.engine.plan import MergePlan
from submerge.engine.work import EditedSource, nonfinite_in_bytes
from submerge.kernels import compiling_for
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

__all__ = [
    "WrittenBank",
    "file_source",
    "gate_bank",
    "parameter_values",
    "trained_values",
    "write_bank_tensors",
]


@dataclass(frozen=True)
class WrittenBank:
    """What is in a bank that was written.

    Attributes:
        tensors: what submerge.json says of each.
        nonfinite: of a tensor with NaN or Inf, how many there are, by whose it is.
    """

    tensors: Mapping[str, TensorRecord]
    nonfinite: Mapping[str, Mapping[str, int]]


def write_bank_tensors(folder: Path, tensors: Iterable[BankTensor]) -> WrittenBank:
    """Write a bank into `folder`, if there is something to write, and return what is in it."""
    items = list(tensors)
    if not items:
        return WrittenBank({}, {})
    counters = {item.name: _NonfiniteCounter(item) for item in items}
    with compiling_for(sum(item.entry.numel for item in items)):
        shard, digests = write_bank(
            folder, [replace(item, open=counters[item.name].opened) for item in items]
        )
    return WrittenBank(
        {n: TensorRecord(entry.dtype, entry.shape, digests[n]) for n, entry in shard.entries.items()},
        {n: {counter.tensor.owner: counter.count} for n, counter in counters.items() if counter.count},
    )


@dataclass
class _NonfiniteCounter:
    """Counts the NaN and Inf of a tensor for a bank while it is read: a merge may read it only then."""

    tensor: BankTensor
    count: int = 0

    def opened(self, table: FileTable) -> Source:
        """Open the tensor, to be read once."""
        self.source = self.tensor.open(table)
        return self

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`."""
        self.source.read(start, count, into)
        self.count += nonfinite_in_bytes(into, self.tensor.entry.dtype)


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
    return parameter_values(key, model, name, model if model.part(name) else None)


def parameter_values(key: str, model: Checkpoint, name: str, editor: Checkpoint | None = None) -> BankTensor:
    """Return all of a parameter: its bytes, or what the editor's adapter makes of them."""
    opened: Callable[[FileTable], Source]
    if editor is None:
        opened = partial(model.source, name)
    else:
        opened = partial(EditedSource, model, editor, name)
    return BankTensor(key, model.tensors[name], opened, (editor or model).label)


def _heads(plan: MergePlan) -> Iterator[BankTensor]:
    assert plan.gate is not None
    for number, task in enumerate(plan.gate.tasks):
        model = plan.models[task.model]
        for name, entry in sorted(task.head.items()):
            if entry.file is not None:
                yield BankTensor(f"heads.{number}.{name}", entry, file_source(entry), model.label)
                continue
            key = next(n for n, e in model.tensors.items() if e is entry)
            yield BankTensor(f"heads.{number}.{name}", entry, partial(model.source, key), model.label)
