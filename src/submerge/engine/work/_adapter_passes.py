"""The passes that merge one tensor into a module of an adapter: as factors, or as new values."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

from submerge.algebra import Dense, LowRank, Streamed, Update, factored, weighted_sum
from submerge.deferred import torch
from submerge.engine.plan import TensorPlan
from submerge.engine.work._adapter_edit import AddedProduct
from submerge.engine.work._chunk_reader import ChunkReader, ranges
from submerge.engine.work._matrix import decomposing, decomposition
from submerge.engine.work._nonfinite import count_nonfinite
from submerge.engine.work._passes import Pass, Passes, single
from submerge.engine.work._range_log import OUTPUT
from submerge.engine.work._range_passes import range_passes
from submerge.engine.work._range_target import memory_target
from submerge.engine.work._record import RangeRecord
from submerge.methods import Merged
from submerge.recipe import OutputForm
from submerge.store import read_elements, torch_dtype

__all__ = ["AdapterSink", "ModuleTarget", "adapter_passes"]

BLOCK = 1 << 20
"""Elements that are read at a time where a tensor is only compared with the base's."""


class AdapterSink(Protocol):
    """Takes the modules of an adapter, from any thread in any order."""

    def add_factors(self, plan: TensorPlan, left: torch.Tensor, right: torch.Tensor) -> None:
        """Take the update left [m, r] · right [r, n] of a tensor."""

    def save_values(self, plan: TensorPlan, values: torch.Tensor) -> None:
        """Take new values of all of a tensor."""

    def save_rows(self, plan: TensorPlan, values: torch.Tensor) -> None:
        """Take new values of the rows that a plan names."""


@dataclass(frozen=True)
class ModuleTarget:
    """Takes one tensor as an adapter has it, and tells when it is finished.

    Attributes:
        index: the tensor's place in the plan.
        adapter: where factors and new values go.
        finished: gets the record, from the worker that finished it.
        form: the rank or the energy that the recipe asks for.
        dtype: what factors are rounded to when the adapter is written.
    """

    index: int
    adapter: AdapterSink
    finished: Callable[[RangeRecord], None]
    form: OutputForm = field(default_factory=OutputForm)
    dtype: torch.dtype = field(default_factory=lambda: torch.float32)


def adapter_passes(reader: ChunkReader, target: ModuleTarget) -> Passes:
    """Yield the passes after which the adapter has a tensor, or is known to have no place for it.

    The last pass is never cut into ranges: an adapter is not resumed, and its factors are decomposed at once.
    """
    plan, record = reader.plan, RangeRecord(target.index)
    if plan.action == "take_base":
        yield _last(target, record, lambda: None)
    elif plan.action == "skip":
        yield _last(target, record, lambda: _note_left_out(reader, record))
    elif plan.action == "copy":
        yield _last(target, record, lambda: target.adapter.save_values(plan, _copied(reader)))
    elif plan.rows:
        update = yield from _in_memory(reader, record, with_origin=False)
        yield _last(target, record, lambda: target.adapter.save_rows(plan, _rows(reader, update, record)))
    elif plan.module is None:
        values = yield from _in_memory(reader, record, with_origin=True)
        yield _last(target, record, lambda: target.adapter.save_values(plan, values))
    else:
        merged = yield from _update(reader, record)
        yield _last(target, record, lambda: _add_factors(reader, target, merged, record))


def _last(target: ModuleTarget, record: RangeRecord, work: Callable[[], None]) -> Pass:
    """Return the pass that does the last piece of work, and then hands over the record."""

    def finish(_: object) -> None:
        work()
        target.finished(record)

    return single(0, finish)


def _update(reader: ChunkReader, record: RangeRecord) -> Generator[Pass, Any, Merged]:
    """Yield the passes that merge a module's updates; return the result, in factors where the method can."""
    plan = reader.plan
    assert plan.method is not None  # what else is merged
    if plan.matrix or plan.method.coefficients is not None:
        merged: Merged = yield decomposition(reader)
        return merged
    update = yield from _in_memory(reader, record, with_origin=False)
    return Merged(Dense(update.view(plan.sides)))


def _in_memory(
    reader: ChunkReader, record: RangeRecord, *, with_origin: bool
) -> Generator[Pass, Any, torch.Tensor]:
    """Yield the passes of a tensor that is merged by ranges; return all of it, in the type of the arithmetic.

    Without `with_origin` that is the update alone. The record's counts of NaN and Inf become those of all
    ranges.
    """
    values = torch.empty(reader.plan.shape, dtype=torch_dtype(reader.code))
    finished: list[RangeRecord] = []  # which several workers may append to at once
    yield from range_passes(
        reader, memory_target(record.tensor, values, reader.code, finished.append, with_origin=with_origin)
    )
    for of_range in finished:
        for key, count in of_range.nonfinite.items():
            record.nonfinite[key] = record.nonfinite.get(key, 0) + count
    return values


def _copied(reader: ChunkReader) -> torch.Tensor:
    """Return the reference's values of a tensor that is not merged."""
    plan = reader.plan
    return read_elements(reader.sources[0], plan.dtype, 0, plan.numel).view(plan.shape)


def _rows(reader: ChunkReader, update: torch.Tensor, record: RangeRecord) -> torch.Tensor:
    """Return the new values of a plan's rows, and note ‖Δ‖ of the others, which are left out, if it is not 0.

    What is changed is the update alone; its values are the origin's besides.
    """
    rows, width = list(reader.plan.rows), math.prod(update.shape[1:])
    assert reader.origin is not None  # an adapter's rows take the place of the base's
    values = [reader.origin.edited(row * width, (row + 1) * width, update.dtype) for row in rows]
    new = torch.stack(values).view(len(rows), *update.shape[1:]).add_(update[rows])
    update[rows] = 0
    if (norm := float(update.norm())) and not record.nonfinite:
        record.figures["left_out"] = norm
    return new


def _note_left_out(reader: ChunkReader, record: RangeRecord) -> None:
    """Note the largest ‖Δ_t‖ of what has no place in an adapter, or its NaN and Inf."""
    squares = [0.0] * len(reader.inputs)
    first = len(reader.members) - len(reader.inputs)
    for _, start, stop in ranges(reader.plan.numel, BLOCK):
        for t, member in enumerate(reader.inputs):
            update = member.difference(reader.origin, start, stop, torch_dtype(reader.code))
            if count := count_nonfinite(update):
                record.nonfinite[t + first] = record.nonfinite.get(t + first, 0) + count
            squares[t] += float(update.double().square().sum())
    if (norm := float(max(squares) ** 0.5)) and not record.nonfinite:
        record.figures["left_out"] = norm


def _add_factors(reader: ChunkReader, target: ModuleTarget, merged: Merged, record: RangeRecord) -> None:
    """Hand the factors of a merged update to the adapter, and note what they leave out of it."""
    if record.nonfinite:  # such an update has no factors
        return
    plan = reader.plan
    with decomposing(plan.name):
        factors = factored(merged.update, _rank(reader, target.form, merged.update), target.form.energy)
    record.figures |= {
        **merged.figures,
        "rank": factors.update.rank,
        "kept_by_rank": factors.kept,
        "error": _error(merged.update, factors.update, target.dtype),
    }
    if isinstance(factors.update, LowRank):
        left, right = factors.update.left, factors.update.right
        target.adapter.add_factors(plan, left, right)
        if count := count_nonfinite(left) + count_nonfinite(right):
            record.nonfinite[OUTPUT] = count


def _rank(reader: ChunkReader, form: OutputForm, update: Update) -> int | None:
    """Return the most that factors may have: what is asked for, or all that low-rank inputs can make.

    A fold by elements mixes low-rank updates into a dense one, whose true rank may be full; what is cut then
    is no more than what the inputs' factors could not hold anyway. None is no bound.
    """
    if form.rank is not None or not isinstance(update, Dense):
        return form.rank
    edits = [member.edit for member in reader.members if member.edit is not None]
    if not all(i.relative for i in reader.plan.inputs) or not all(isinstance(e, AddedProduct) for e in edits):
        return None
    return sum(edit.factors.rank for edit in edits if isinstance(edit, AddedProduct))


def _error(update: Update, factors: Update, dtype: torch.dtype) -> float:
    """Return ‖Δ − factors‖ / ‖Δ‖, for the factors as they are when they are rounded to `dtype`."""
    if isinstance(factors, LowRank):
        rounded = LowRank(*(f.to(dtype).to(f.dtype) for f in (factors.left, factors.right)))
        if isinstance(update, LowRank) and _equal(update, rounded):
            return 0.0
        factors = rounded
    if not isinstance(update, (Dense, Streamed)):
        return weighted_sum([update, factors], [1.0, -1.0]).norm / update.norm if update.norm else 0.0
    total = left_out = 0.0
    for at, block in update.blocks(torch.float64):
        total += float(block.square().sum())
        left_out += float((block - factors.rows(at.start, at.stop)).square().sum())
    return (left_out / total) ** 0.5 if total else 0.0


def _equal(a: LowRank, b: LowRank) -> bool:
    return torch.equal(a.left, b.left) and torch.equal(a.right, b.right)
