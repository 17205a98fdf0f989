"""Where the ranges of one output tensor go: into a shard, or into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from submerge.deferred import np, npt
from submerge.engine.work._nonfinite import count_negative, is_variance
from submerge.engine.work._passes import Range
from submerge.engine.work._range_log import OUTPUT, RangeLog
from submerge.engine.work._record import RangeRecord
from submerge.engine.work._workspace import Workspace
from submerge.kernels import array_type, count_nonfinite, store
from submerge.methods import Merged
from submerge.store import BankParts, MemorySink, Sink, TensorEntry

if TYPE_CHECKING:
    import torch

__all__ = ["RangeTarget", "Run", "memory_target"]

Run: TypeAlias = "tuple[npt.NDArray[Any], npt.NDArray[Any] | None]"
"""What a fold gave for consecutive elements, and the origin that is added to it, if any."""


@dataclass(frozen=True)
class RangeTarget:
    """Takes one tensor range by range, from any worker, and tells of each range that is finished.

    Attributes:
        index: the tensor's place in the plan.
        entry: its place in the output.
        sink: what its bytes are written to.
        finished: gets the record of each range, from the worker that wrote it.
        done: the ranges that an earlier run finished.
        hashed: whether the bytes that are read and written are digested.
        with_origin: whether the origin is added to the merged update; else the update alone is taken.
        bank: what the gate's tensors are put into, where the output has one.
    """

    index: int
    entry: TensorEntry
    sink: Sink
    finished: Callable[[RangeRecord], None]
    done: frozenset[int] = frozenset()
    hashed: bool = True
    with_origin: bool = True
    bank: BankParts | None = None

    def write(self, start: int, stop: int, runs: Iterable[Run], space: Workspace, log: RangeLog) -> None:
        """Round runs, which together are [start, stop), to the output's type, and store them."""
        code, first = self.entry.dtype, 0
        out = space.row("out", stop - start, array_type(code))
        for values, origin in runs:
            part = out[first : first + values.size]
            if not store(code, values, part, origin):
                log.count(OUTPUT, count_nonfinite(code, part))
            if is_variance(self.entry.name) and (negative := count_negative(part)):
                log.count(OUTPUT, negative)
            first += values.size
        view = out.view(np.uint8).data
        log.wrote(view)
        self.sink.write(self.entry, start, view)

    def copy(self, start: int, data: memoryview) -> None:
        """Store the bytes of elements from `start` on as they are."""
        self.sink.write(self.entry, start, data)

    def finish(
        self, one: Range, log: RangeLog, *, merged: Merged | None = None, differs: Sequence[int] = ()
    ) -> None:
        """Tell that a range is stored: its log, the method's figures of a matrix, a copy's differences."""
        part = ""
        if merged and merged.bank and self.bank is not None and not log.nonfinite:
            part = self.bank.put(self.index, merged.bank)
        record = RangeRecord(
            tensor=self.index,
            range=one.number,
            output=log.output,
            inputs=log.inputs,
            nonfinite=log.nonfinite,
            differs=list(differs),
            figures=dict(merged.figures) if merged else {},
            part=part,
        )
        self.finished(record)


def memory_target(
    index: int,
    values: torch.Tensor,
    dtype: str,
    finished: Callable[[RangeRecord], None],
    *,
    with_origin: bool = True,
    name: str = "",
) -> RangeTarget:
    """Return a target that fills `values`, whose type is called `dtype` in files of safetensors."""
    entry = TensorEntry(name, dtype, tuple(values.shape), None, 0, 0)
    return RangeTarget(
        index, entry, MemorySink({name: values}), finished, hashed=False, with_origin=with_origin
    )
