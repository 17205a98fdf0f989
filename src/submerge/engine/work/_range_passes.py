"""The passes that merge one tensor into a target by ranges: reductions, then a fold; or a copy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from submerge.algebra import Chunk, Reduction, WeightedSum
from submerge.deferred import np, npt, torch
from submerge.engine.work._chunk_reader import ChunkReader, sample_spans
from submerge.engine.work._matrix import decomposition, elements
from submerge.engine.work._passes import Pass, Passes, Range
from submerge.engine.work._range_log import RangeLog
from submerge.engine.work._range_target import RangeTarget, Run
from submerge.engine.work._workspace import Workspace
from submerge.kernels import array_type, is_finite
from submerge.methods import Fold, Merged
from submerge.store import DTYPES

__all__ = ["fold_pass", "fold_without_reductions", "range_passes"]


def range_passes(reader: ChunkReader, target: RangeTarget) -> Passes:
    """Yield the passes after which the target has all of a tensor, as its plan says how it is made.

    Ranges that the target has from an earlier run are left out of the last pass alone: a reduction is over
    all of the tensor, and its result is nowhere else than in the run that made it.
    """
    plan = reader.plan
    ranges = reader.one_range if plan.matrix else reader.ranges
    left = [one for one in ranges if one.number not in target.done]
    if not left:
        return
    if plan.action == "copy":
        yield copy_pass(reader, target, left)
    elif plan.keeps_values:
        yield unchanged_pass(reader, target, left)
    elif plan.matrix:
        merged: Merged = yield decomposition(reader)
        yield fold_pass(reader, target, left, _elements_of(merged), merged)
    elif plan.action == "merge" and plan.numel:
        fold = yield from reductions(reader)
        yield fold_pass(reader, target, left, fold)
    else:
        yield fold_pass(reader, target, left, first_row)


def fold_without_reductions(reader: ChunkReader) -> Fold:
    """Return the fold of a tensor that is merged in one pass, or taken from the base."""
    if reader.plan.action != "merge" or not reader.plan.numel:
        return first_row
    try:
        next(reductions(reader))
    except StopIteration as end:
        fold: Fold = end.value
        return fold
    raise ValueError(f"{reader.plan.name} is merged in several passes")


def first_row(chunk: Chunk) -> npt.NDArray[Any]:
    """Return the values of the first model."""
    row: npt.NDArray[Any] = chunk.values[0]
    return row


def reductions(reader: ChunkReader) -> Generator[Pass, Any, Fold]:
    """Yield a pass for each reduction of the method's plan; return its fold."""
    method = reader.plan.method
    assert method is not None  # what else is merged
    plan = method.plan(reader.plan.spec, reader.plan.values)
    result = None
    while True:
        try:
            with np.errstate(all="ignore"):
                reduction = plan.send(result)
        except StopIteration as end:
            fold: Fold = end.value
            return fold
        result = yield reduction_pass(reader, reduction)


def reduction_pass(reader: ChunkReader, reduction: Reduction[Any, Any]) -> Pass:
    """Return the pass of a reduction: its parts, one a chunk, come together in the order of the chunks."""

    def observe(one: Range, space: Workspace) -> list[Any]:
        spans = sample_spans(reader.plan.numel, reader.plan.width) if reduction.sample else reader.spans(one)
        with np.errstate(all="ignore"):
            return [reduction.observe(chunk) for span in spans for chunk in reader.chunks(*span, space)]

    def combine(parts: list[list[Any]]) -> Any:
        return reduction.combine([part for of_range in parts for part in of_range])

    return Pass(reader.one_range if reduction.sample else reader.ranges, observe, combine)


def fold_pass(
    reader: ChunkReader, target: RangeTarget, ranges: list[Range], fold: Fold, merged: Merged | None = None
) -> Pass:
    """Return the pass that folds each chunk, adds the origin, and hands it to the target.

    `merged` is the result that the fold is of, where a matrix was decomposed.
    """
    edited = merged is None or not reader.plan.compares

    adds_origin = reader.origin is not None and target.with_origin

    def runs(start: int, stop: int, space: Workspace, log: RangeLog) -> Iterator[Run]:
        if isinstance(fold, WeightedSum) and reader.sums_raw:
            for values, origin in reader.sums(start, stop, fold.coefficients, space, log):
                yield values, origin if adds_origin else None
            return
        for chunk in reader.chunks(start, stop, space, log, edited=edited):
            yield _array(fold(chunk)), reader.origin_of(chunk, space) if adds_origin else None

    def write(one: Range, space: Workspace) -> None:
        log = RangeLog(len(reader.sources), hashed=target.hashed)
        with np.errstate(all="ignore"):
            for start, stop in reader.spans(one):
                target.write(start, stop, runs(start, stop, space, log), space, log)
        target.finish(one, log, merged=merged)

    return Pass(ranges, write)


def copy_pass(reader: ChunkReader, target: RangeTarget, ranges: list[Range]) -> Pass:
    """Return the pass that copies the first source bit for bit, and compares the others with it."""
    itemsize, byte = DTYPES[reader.plan.dtype].itemsize, np.dtype(np.uint8)

    def copy(one: Range, space: Workspace) -> None:
        log = RangeLog(len(reader.sources), hashed=target.hashed, copy=True)
        differs: set[int] = set()
        for start, stop in reader.spans(one):
            first, other = (space.row(use, (stop - start) * itemsize, byte) for use in ("first", "other"))
            for i, source in enumerate(reader.sources):
                read = other if i else first
                source.read(start, stop - start, read.data)
                log.read(i, read.data)
                if i and not np.array_equal(first, other):
                    differs.add(i)
            target.copy(start, first.data)
        target.finish(one, log, differs=sorted(differs))

    return Pass(ranges, copy)


def unchanged_pass(reader: ChunkReader, target: RangeTarget, ranges: list[Range]) -> Pass:
    """Return the pass that writes floats as they are read.

    A range with NaN or Inf is folded as others are, which counts them, and stores one NaN for all.
    """
    code = reader.plan.dtype
    folded = fold_pass(reader, target, ranges, first_row)

    def copy(one: Range, space: Workspace) -> None:
        log = RangeLog(len(reader.sources), hashed=target.hashed, copy=True)
        for start, stop in reader.spans(one):
            values = space.row("first", stop - start, array_type(code))
            data = values.view(np.uint8).data
            reader.sources[0].read(start, stop - start, data)
            if not is_finite(code, values):
                folded.work(one, space)
                return
            log.read(0, data)
            target.copy(start, data)
        target.finish(one, log)

    return Pass(ranges, copy)


def _array(values: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[Any]:
    """Return what a fold gave, in the CPU's memory, one element after another, in float32 or float64."""
    if not isinstance(values, np.ndarray):
        exact = values.dtype in (torch.float32, torch.float64)
        values = (values if exact else values.float()).detach().cpu().numpy()
    dtype = values.dtype if values.dtype in (np.float32, np.float64) else np.float32
    return np.ascontiguousarray(values, dtype).reshape(-1)


def _elements_of(merged: Merged) -> Callable[[Chunk], torch.Tensor]:
    """Return the fold that takes a merged matrix's elements."""

    return lambda chunk: elements(merged.update, chunk.start, chunk.values.shape[1])
