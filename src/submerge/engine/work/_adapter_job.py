"""Jobs whose result goes into an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from submerge.algebra import Dense, LowRank, Streamed, Update, factored, weighted_sum
from submerge.deferred import torch
from submerge.engine.plan import TensorPlan
from submerge.engine.work._adapter_edit import Product
from submerge.engine.work._job import Job, Task, count_nonfinite, ranges
from submerge.engine.work._matrix_job import MatrixJob, decomposing
from submerge.engine.work._record import TaskRecord
from submerge.engine.work._workspace import Workspace
from submerge.methods import Merged
from submerge.recipe import OutputForm
from submerge.store import MemorySink, TensorEntry

__all__ = ["AdapterJob", "AdapterSink"]

BLOCK = 1 << 20


class AdapterSink(Protocol):
    """Takes the modules of an adapter, from any thread in any order."""

    def factors(self, plan: TensorPlan, left: torch.Tensor, right: torch.Tensor) -> None:
        """Take the update left [m, r] · right [r, n] of a tensor."""

    def whole(self, plan: TensorPlan, values: torch.Tensor) -> None:
        """Take new values of a whole tensor."""


@dataclass
class AdapterJob(MatrixJob):
    """Merges one tensor's updates and hands them on as factors, or as new values where it has no module."""

    form: OutputForm = field(default_factory=OutputForm)
    adapter: AdapterSink | None = None
    dtype: torch.dtype = field(default_factory=lambda: torch.float32)

    def _write(self, task: Task, space: Workspace) -> TaskRecord:
        assert self.adapter is not None
        plan = self.plan
        bad: dict[int, int] = {}
        if plan.treatment == "base":
            return TaskRecord(self.index, 0, "", [], bad)
        if plan.treatment == "drop":
            lost = self._difference(bad)
            return TaskRecord(self.index, 0, "", [], bad, figures={"left_out": lost} if lost else {})
        if plan.module is None:
            self.adapter.whole(plan, self._in_memory(space, bad, whole=True))
            return TaskRecord(self.index, 0, "", [], bad)
        merged = self._merged(space, bad)
        if bad:  # such an update has no factors
            return TaskRecord(self.index, 0, "", [], bad)
        rank = self.form.rank
        if rank is None and isinstance(merged.update, Dense) and all(i.relative for i in plan.inputs):
            patches = [feed.patch for feed in self._feeds]
            rank = sum(patch.factors.rank for patch in patches if isinstance(patch, Product))
        with decomposing(plan.name):
            found = factored(merged.update, rank, self.form.energy)
        figures = {
            **merged.figures,
            "rank": found.update.rank,
            "kept_by_rank": found.kept,
            "error": _error(merged.update, found.update, self.dtype),
        }
        if isinstance(found.update, LowRank):
            left, right = found.update.left, found.update.right
            self.adapter.factors(plan, left, right)
            if count := count_nonfinite(left) + count_nonfinite(right):
                bad = {-1: count}
        return TaskRecord(self.index, 0, "", [], bad, figures=figures)

    def _merged(self, space: Workspace, bad: dict[int, int]) -> Merged:
        method = self.plan.method
        assert method is not None
        if self.plan.matrix or method.coefficients is not None:
            return self.merged(space)
        return Merged(Dense(self._in_memory(space, bad, whole=False).view(self.plan.sides)))

    def _difference(self, bad: dict[int, int]) -> float:
        """Return the largest ‖Δ_t‖ of what has no place in an adapter; `bad` counts its NaN and Inf."""
        squares = [0.0] * len(self.plan.inputs)
        origin = self._feeds[0] if self._origin else None
        for start, stop in ranges(self.plan.numel, BLOCK):
            for t, feed in enumerate(self._feeds[self._origin :]):
                found = feed.difference(origin, start, stop, self._compute)
                if count := count_nonfinite(found):
                    bad[t + self._origin] = bad.get(t + self._origin, 0) + count
                squares[t] += float(found.double().square().sum())
        return 0.0 if bad else float(max(squares) ** 0.5)

    def _in_memory(self, space: Workspace, bad: dict[int, int], *, whole: bool) -> torch.Tensor:
        """Return what the method gives in one tensor: new values, or the update alone.

        `bad` counts the NaN and Inf that are met, as a record does.
        """
        code = "F64" if self._compute == torch.float64 else "F32"
        out = torch.empty(self.plan.shape, dtype=self._compute)
        job = (MatrixJob if self.plan.matrix else Job)(
            index=self.index,
            plan=replace(self.plan, dtype=code),
            entry=TensorEntry(self.plan.name, code, self.plan.shape, None, 0, 0),
            sources=self.sources,
            sink=MemorySink({self.plan.name: out}),
            seed=self.seed,
            patches=self.patches,
            hashed=False,
            whole=whole,
        )

        def count(record: TaskRecord) -> None:
            for where, found in record.nonfinite.items():
                bad[where] = bad.get(where, 0) + found

        job.run(space, count)
        return out


def _error(update: Update, factors: Update, dtype: torch.dtype) -> float:
    """Return ‖Δ − factors‖ / ‖Δ‖, for the factors as they are when they are rounded to `dtype`."""
    if isinstance(factors, LowRank):
        rounded = LowRank(*(f.to(dtype).to(f.dtype) for f in (factors.left, factors.right)))
        if isinstance(update, LowRank) and _equal(update, rounded):
            return 0.0
        factors = rounded
    if not isinstance(update, (Dense, Streamed)):
        return weighted_sum([update, factors], [1.0, -1.0]).norm / update.norm if update.norm else 0.0
    whole = left_out = 0.0
    for at, block in update.blocks(torch.float64):
        whole += float(block.square().sum())
        left_out += float((block - factors.rows(at.start, at.stop)).square().sum())
    return (left_out / whole) ** 0.5 if whole else 0.0


def _equal(a: LowRank, b: LowRank) -> bool:
    return torch.equal(a.left, b.left) and torch.equal(a.right, b.right)
