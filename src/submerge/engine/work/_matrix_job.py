"""Jobs that merge one weight matrix whole: the updates of all models, as low as their rank is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from submerge.algebra import Dense, LowRank, Streamed, Update, Zero, weighted_sum
from submerge.deferred import torch
from submerge.engine.plan import HELD, Input
from submerge.engine.work._adapter_edit import Product
from submerge.engine.work._job import Job, Task
from submerge.engine.work._record import TaskRecord
from submerge.engine.work._workspace import Workspace
from submerge.errors import WorkError
from submerge.methods import Merged

__all__ = ["MatrixJob", "decomposing", "elements"]


@contextmanager
def decomposing(name: str) -> Iterator[None]:
    """Turn torch's failure to decompose a tensor into a `WorkError` that names it."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        what = "its singular vectors cannot be computed"
        hint = "do the inputs hold NaN or Inf?"
        raise WorkError(f"tensor {name}: {what} ({error}) — {hint}") from error


@dataclass
class MatrixJob(Job):
    """A job of one task: the method's `matrix` on all updates, then the base plus what it returned."""

    @property
    def tasks_in_all(self) -> int:
        return 1

    def begin(self) -> list[Task]:
        return self._last_pass()

    def _ranges(self) -> list[Task]:
        return [Task(self, 0, 0, self.plan.numel)]

    def _write(self, task: Task, space: Workspace) -> TaskRecord:
        merged = self.merged(space)
        self._fold = lambda chunk: elements(merged.update, chunk.start, chunk.updates.shape[1]).to(
            chunk.updates.device
        )
        record = super()._write(task, space)
        record.figures = dict(merged.figures)
        if merged.bank and self.parts is not None and not record.nonfinite:
            record.part = self.parts.put(self.index, merged.bank)
        return record

    def merged(self, space: Workspace) -> Merged:
        """Return what the method makes of the updates; raise `WorkError` where they cannot be decomposed."""
        method = self.plan.method
        assert method is not None
        with decomposing(self.plan.name):
            bank = self.bank()
            if method.matrix is not None:
                return method.matrix(bank, self.plan.spec, self.plan.values)
            assert method.coefficients is not None
            return Merged(weighted_sum(bank, list(method.coefficients(self.plan.values))))

    def bank(self) -> list[Update]:
        """Return each input's update."""
        dense = sum(not i.relative for i in self.plan.inputs)
        held = dense * self.plan.numel <= HELD
        return [self._update(t, i, held) for t, i in enumerate(self.plan.inputs)]

    def _update(self, t: int, own: Input, held: bool) -> Update:
        size, feed = self.plan.sides, self._feeds[t + self._origin]
        if own.relative and feed.patch is None:
            return Zero(size)
        if own.relative and isinstance(feed.patch, Product):
            return LowRank(*feed.patch.factors.pair)

        origin = self._feeds[0] if self._origin else None

        def rows(start: int, stop: int) -> torch.Tensor:
            found = feed.difference(origin, start * size[1], stop * size[1], self._compute)
            return found.view(-1, size[1])

        streamed = Streamed(size, rows, self._compute)
        return Dense(streamed.dense()) if held else streamed


def elements(update: Update, start: int, count: int) -> torch.Tensor:
    """Return a run of the flattened update's elements."""
    width = update.shape[1]
    top = start // width
    rows = update.rows(top, -(-(start + count) // width)).reshape(-1)
    return rows[start - top * width : start - top * width + count].clone()  # the caller may add to it
