"""Chunks of one tensor's updates: the same run of elements of every input, read through one small buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from submerge.algebra import Chunk, stream_key
from submerge.deferred import np, npt
from submerge.engine.plan import TensorPlan, chunk_length, range_length, read_length
from submerge.engine.work._adapter_edit import AdapterEdit
from submerge.engine.work._input_reader import input_readers
from submerge.engine.work._passes import Range
from submerge.engine.work._range_log import RangeLog
from submerge.engine.work._workspace import Workspace
from submerge.kernels import (
    MOST_RAWS,
    array_type,
    count_nonfinite,
    load,
    sum_bf16,
    sum_updates_bf16,
)
from submerge.store import Source

__all__ = ["ChunkReader", "ranges", "sample_spans"]

Array: TypeAlias = "npt.NDArray[Any]"

SAMPLE_RUNS = 64
SAMPLE_LENGTH = 4096
ROUNDING = 16 * 2.0**-23  # of float32, whose epsilon this is
"""What share of itself an entry of an adapter's product may be off by: other ranges are other products."""


class ChunkReader:
    """Reads one tensor of a plan by chunks, in every pass anew; shared by all workers.

    Args:
        plan: the tensor.
        sources: what `plan.read` names, in that order.
        edits: what adapters do to `plan.members`, one for each; empty where there are no adapters.
        seed: of the recipe.
        partner: reads the other parameter of the tensor's layer, where it is merged with it.

    Attributes:
        code: the safetensors dtype of the arithmetic: F64 where a member is, else F32.
    """

    def __init__(
        self,
        plan: TensorPlan,
        sources: Sequence[Source],
        edits: Sequence[AdapterEdit | None] = (),
        seed: int = 0,
        partner: ChunkReader | None = None,
    ) -> None:
        self.plan = plan
        self.partner = partner
        self.sources = sources
        members = input_readers(plan.members, sources, edits or [None] * len(plan.members))
        self.members = members
        self.origin = members[0] if plan.origin else None
        self.inputs = members[1:] if plan.origin else members
        self.code = "F64" if any(member.code == "F64" for member in members) else "F32"
        self._width = plan.width
        self._length = chunk_length(len(plan.inputs), self._width)
        name = plan.parameter or plan.name
        self._keys = [stream_key(seed, name, t) for t in range(len(plan.inputs))]
        self._rounding = 0.0 if all(member.edit is None for member in members) else ROUNDING

    @cached_property
    def ranges(self) -> list[Range]:
        """The ranges of a pass over all of the tensor."""
        return ranges(self.plan.numel, range_length(self._length))

    @property
    def one_range(self) -> list[Range]:
        """The tensor as a single range."""
        return [Range(0, 0, self.plan.numel)]

    def spans(self, one: Range) -> Iterator[tuple[int, int]]:
        """Yield the first and last elements of what is read at once, and written at once, in a range."""
        step = read_length(self._length)
        for start in range(one.start, one.stop, step):
            yield start, min(start + step, one.stop)

    def chunks(
        self, start: int, stop: int, space: Workspace, log: RangeLog | None = None, *, edited: bool = True
    ) -> Iterator[Chunk]:
        """Read [start, stop), and yield its chunks: each is in the worker's buffers until the next one.

        `log` takes in the bytes of each source, and counts NaN and Inf by member. Where nothing but the log
        is wanted, it spares time to leave values as they are before adapters change them: not `edited`.
        """
        raws = self._read(start, stop, space, log)
        for first in range(start, stop, self._length):
            last = min(first + self._length, stop)
            parts = [None if raw is None else raw[first - start : last - start] for raw in raws]
            yield self._chunk(first, last, parts, space, log, edited)

    @property
    def sums_raw(self) -> bool:
        """Whether `sums` can be had: of bfloat16 values, as they are read."""
        return all(m.source is not None and m.edit is None and m.code == "BF16" for m in self.members)

    def sums(
        self, start: int, stop: int, coefficients: Sequence[float], space: Workspace, log: RangeLog
    ) -> Iterator[tuple[Array, Array | None]]:
        """Read [start, stop), and yield of each chunk Σ c_t Δ_t [n], as by `combine`, and the origin [n].

        The loop that converts what was read adds it up: no row of an input is written, nor read again.
        """
        raws = [raw for raw in self._read(start, stop, space, log) if raw is not None]
        factors = tuple(map(self._dtype.type, coefficients))
        for first in range(0, stop - start, self._length):
            parts = [raw[first : first + self._length] for raw in raws]
            total, origin, finite = space.row("sum", parts[0].size, self._dtype), None, True
            if self.origin is not None:
                origin = space.row("origin", parts[0].size, self._dtype)
                finite = load("BF16", parts[0], origin)
            inputs = parts if origin is None else parts[1:]
            for t in range(0, len(inputs), MOST_RAWS):
                group, weights = tuple(inputs[t : t + MOST_RAWS]), factors[t : t + MOST_RAWS]
                if origin is None:
                    finite &= sum_bf16(total, group, weights, t > 0)
                else:
                    finite &= sum_updates_bf16(total, origin, group, weights, t > 0)
            for i, part in enumerate(() if finite else parts):
                if nonfinite := count_nonfinite("BF16", part):
                    log.count(i, nonfinite)
            yield total, origin

    def origin_of(self, chunk: Chunk, space: Workspace) -> Array:
        """Return the origin's values [n] that a chunk was just read against."""
        return space.row("origin", chunk.values.shape[1], self._dtype)

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        return array_type(self.code)

    def _read(self, start: int, stop: int, space: Workspace, log: RangeLog | None) -> list[Array | None]:
        """Return each member's elements as its file has them; None for an update without values."""
        raws: list[Array | None] = []
        for member in self.members:
            raw = None
            if member.source is not None:
                raw = space.row(f"raw {member.position}", stop - start, array_type(member.code))
                view = raw.view(np.uint8).data
                member.source.read(start, stop - start, view)
                if log is not None:
                    log.read(member.position, view)
            raws.append(raw)
        return raws

    def _chunk(
        self,
        start: int,
        stop: int,
        raws: Sequence[Array | None],
        space: Workspace,
        log: RangeLog | None,
        edited: bool,
    ) -> Chunk:
        """Return the updates of [start, stop)."""
        n = stop - start
        updates, rows = space.stack("updates", len(self.inputs), n, self._dtype)
        origin = None
        finite = True
        buffers = [space.row("origin", n, self._dtype), *rows] if self.origin else rows
        for i, (member, raw, row) in enumerate(zip(self.members, raws, buffers, strict=True)):
            nonfinite = member.fill(row, raw, start, origin, edited=edited)
            if nonfinite:
                finite = False
                if log is not None:
                    log.count(i, nonfinite)
            if member is self.origin:
                origin = row

        def spare(index: int) -> Array:
            return space.row(f"scratch {index}", n, self._dtype)

        return Chunk(start, updates, self._width, finite, self._keys, spare, self._rounding, space.device)


def ranges(numel: int, length: int) -> list[Range]:
    """Return runs of `length` elements that cover a tensor; one empty run for an empty tensor."""
    starts = range(0, numel, length) if numel else [0]
    return [Range(k, start, min(start + length, numel)) for k, start in enumerate(starts)]


def sample_spans(numel: int, width: int = 1) -> list[tuple[int, int]]:
    """Return a few short runs, evenly spread over the tensor: those of every run alike.

    They hold whole rows of `width`, as all chunks do.
    """
    length = width * max(1, SAMPLE_LENGTH // width)
    if numel <= SAMPLE_RUNS * length:
        return [(0, numel)]
    last = (numel - length) // width
    starts = [last * k // (SAMPLE_RUNS - 1) * width for k in range(SAMPLE_RUNS)]
    return [(start, start + length) for start in starts]
