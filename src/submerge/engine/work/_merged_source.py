"""A tensor that is merged as it is read: no file has its values."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from submerge.engine.plan import MergePlan, TensorPlan
from submerge.engine.work._chunk_reader import ChunkReader
from submerge.engine.work._passes import Range
from submerge.engine.work._range_passes import fold_pass, fold_without_reductions
from submerge.engine.work._range_target import RangeTarget
from submerge.engine.work._workspace import Workspace
from submerge.methods import Fold
from submerge.store import Checkpoint, FileTable, RowSource, Source, TensorEntry

__all__ = ["merged_tensors"]


def merged_tensors(plan: MergePlan) -> dict[str, RowSource]:
    """Return the tensors of a plan by name, each computed whenever a range of it is read.

    Every element must depend on the models' same elements alone (`can_be_virtual`). The bytes are those that
    the merge would write.
    """
    return {
        t.name: _MergedTensor(t, plan.entries[t.name], plan.models, plan.recipe.seed) for t in plan.tensors
    }


@dataclass(frozen=True)
class _MergedTensor:
    plan: TensorPlan
    entry: TensorEntry
    models: Sequence[Checkpoint]
    seed: int

    def open(self, table: FileTable) -> Source:
        """Return where to read it; the models' files are opened in `table`."""
        sources = [self.models[i.model].source(i.entry.name, table) for i in self.plan.read]
        if self.plan.action == "copy":
            return sources[0]
        reader = ChunkReader(self.plan, sources, seed=self.seed)
        return _MergedSource(reader, self.entry, fold_without_reductions(reader))


@dataclass(frozen=True)
class _MergedSource:
    reader: ChunkReader
    entry: TensorEntry
    fold: Fold

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`."""
        sink = _Buffer(start, self.entry.itemsize, into.cast("B"))
        target = RangeTarget(0, self.entry, sink, lambda record: None, hashed=False)
        one = Range(0, start, start + count)
        with _spaces.borrowed() as space:
            fold_pass(self.reader, target, [one], self.fold).work(one, space)


@dataclass(frozen=True)
class _Buffer:
    """A sink into a buffer that holds elements from `start` on."""

    start: int
    itemsize: int
    data: memoryview

    def write(self, entry: TensorEntry, start: int, data: memoryview) -> None:
        first = (start - self.start) * self.itemsize
        self.data[first : first + data.nbytes] = data.cast("B")


@dataclass
class _Spaces(threading.local):
    """The workspaces of each thread that are not in use.

    A model that is merged as it is read may be made of others that are: each then needs its own, and beside
    them there is that of the merge that reads.
    """

    free: list[Workspace] = field(default_factory=list)

    @contextmanager
    def borrowed(self) -> Iterator[Workspace]:
        """Yield a workspace that nobody else in this thread uses meanwhile."""
        space = self.free.pop() if self.free else Workspace()
        try:
            yield space
        finally:
            self.free.append(space)


_spaces = _Spaces()
