"""One tensor on its way through the passes of its method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from submerge.algebra import Chunk, Reduction, stream_key
from submerge.deferred import torch
from submerge.engine.plan import TensorPlan, chunk_length, task_length, torch_dtype
from submerge.engine.work._adapter_edit import Patch
from submerge.engine.work._reader import feeds
from submerge.engine.work._record import TaskRecord
from submerge.engine.work._workspace import Workspace
from submerge.methods import Fold
from submerge.store import BankParts, Sink, Source, TensorEntry, hasher

__all__ = ["Job", "Task"]

SAMPLE_RUNS = 64
SAMPLE_LENGTH = 4096
ROUNDING = 16 * 2.0**-23  # of float32, whose epsilon this is
"""What share of itself an entry of an adapter's product may be off by: other ranges are other products."""


@dataclass(slots=True)
class Task:
    """A range of one pass over one tensor: elements [start, stop)."""

    job: Job
    index: int
    start: int
    stop: int


@dataclass
class Job:
    """The state of one output tensor: which pass it is in, and what the pass has found so far.

    `sources` are in the order of `plan.read`. `done` holds the tasks of the last pass that an
    earlier run finished. `patches` are what adapters do to `plan.members`, one for each (or none at all).
    `whole` false leaves the origin out of what is written: the update alone. `parts` takes what a gate keeps
    of the tensor. `_sound` holds the chunks
    that an earlier pass found finite. The pool calls `begin` once, `work` for each task (any thread),
    `deliver` with what it returned, and `proceed` when that made a pass whole.
    """

    index: int
    plan: TensorPlan
    entry: TensorEntry
    sources: Sequence[Source]
    sink: Sink
    seed: int
    done: frozenset[int] = frozenset()
    hashed: bool = True
    patches: Sequence[Patch | None] = ()
    whole: bool = True
    parts: BankParts | None = None
    _reduction: Reduction[Any, Any] | None = None
    _fold: Fold | None = None
    _parts: dict[int, Any] = field(default_factory=dict)
    _waiting: int = 0
    _sound: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        plan = self.plan
        self._origin = plan.origin is not None
        self._count = len(plan.inputs)
        self._width = plan.width
        self._chunk = chunk_length(self._count, self._width)
        self._feeds = feeds(plan.members, self.sources, self.patches or [None] * len(plan.members))
        self._out = torch_dtype(plan.dtype)
        wide = any(feed.dtype == torch.float64 for feed in self._feeds)
        self._compute = torch.float64 if wide else torch.float32
        self._keys = [stream_key(self.seed, plan.parameter or plan.name, t) for t in range(self._count)]
        self._rounding = 0.0 if all(feed.patch is None for feed in self._feeds) else ROUNDING

    @property
    def tasks_in_all(self) -> int:
        """How many tasks the last pass has."""
        return len(ranges(self.plan.numel, task_length(self._chunk)))

    def begin(self) -> list[Task]:
        """Start the method's plan, and return the first tasks."""
        if self.plan.treatment == "merge" and self.plan.numel and len(self.done) < self.tasks_in_all:
            assert self.plan.method is not None
            self._steps = self.plan.method.plan(self.plan.spec, self.plan.values)
            return self._advance(None)
        return self._last_pass()

    def _advance(self, found: Any) -> list[Task]:
        try:
            self._reduction = self._steps.send(found)
        except StopIteration as end:
            self._reduction, self._fold = None, end.value
            return self._last_pass()
        if self._reduction.sample:
            tasks = [Task(self, 0, 0, self.plan.numel)]
        else:
            tasks = self._ranges()
        self._waiting = len(tasks)
        return tasks

    def _ranges(self) -> list[Task]:
        length = task_length(self._chunk)
        return [Task(self, k, *span) for k, span in enumerate(ranges(self.plan.numel, length))]

    def _last_pass(self) -> list[Task]:
        tasks = [task for task in self._ranges() if task.index not in self.done]
        self._waiting = len(tasks)
        return tasks

    def work(self, task: Task, space: Workspace) -> Any:
        """Return the parts of a reduction over the task's range, or the record of what it wrote."""
        if self._reduction is not None:
            spans: Iterable[tuple[int, int]] = self._spans(task)
            if self._reduction.sample:
                spans = sample_spans(self.plan.numel)
            return [self._reduction.observe(self._load(start, stop, space)) for start, stop in spans]
        if self.plan.treatment == "keep":
            return self._copy(task, space)
        return self._write(task, space)

    def deliver(self, task: Task, result: Any) -> bool:
        """Take what `work` returned, under the pool's lock; return whether the pass is whole."""
        self._parts[task.index] = result
        self._waiting -= 1
        return self._waiting == 0

    def proceed(self) -> list[Task]:
        """Combine a whole pass, and return the tasks of the next one; none after the last."""
        parts, self._parts = self._parts, {}
        if self._reduction is None:
            return []
        ordered = [part for index in sorted(parts) for part in parts[index]]
        return self._advance(self._reduction.combine(ordered))

    def run(self, space: Workspace, finished: Callable[[TaskRecord], None] = lambda _: None) -> None:
        """Take the job through all its passes in the calling thread, with the record of each range."""
        tasks = self.begin()
        while tasks:
            for task in tasks:
                result = self.work(task, space)
                if isinstance(result, TaskRecord):
                    finished(result)
                whole = self.deliver(task, result)
            tasks = self.proceed() if whole else []

    def _spans(self, task: Task) -> Iterator[tuple[int, int]]:
        for start in range(task.start, task.stop, self._chunk):
            yield start, min(start + self._chunk, task.stop)

    def _load(
        self,
        start: int,
        stop: int,
        space: Workspace,
        hashers: Sequence[Any] = (),
        found: dict[int, int] | None = None,
    ) -> Chunk:
        """Return a chunk with the updates of [start, stop), read through one small host buffer.

        `hashers` take in the bytes of each source; `found` counts NaN and Inf by source.
        """
        n = stop - start
        updates, rows = space.stack("updates", self._count, n, self._compute)
        origin = space.work("origin", n, self._compute) if self._origin else None
        finite = True
        seen = (start, stop) in self._sound
        targets = rows if origin is None else [origin, *rows]
        for i, (feed, row) in enumerate(zip(self._feeds, targets, strict=True)):
            feed.fill(start, row, space, hashers)
            if not seen and not is_finite(row):
                finite = False
                if found is not None:
                    found[i] = found.get(i, 0) + count_nonfinite(row)
            if origin is not None and i and not feed.relative:
                row.sub_(origin)  # while the row is in the cache
        if finite:
            self._sound.add((start, stop))

        def spare(index: int) -> torch.Tensor:
            return space.work(f"scratch {index}", n, self._compute)

        return Chunk(start, updates, self._width, finite, self._keys, spare, self._rounding)

    def _write(self, task: Task, space: Workspace) -> TaskRecord:
        hashers = [hasher() for _ in self.sources] if self.hashed else []
        written = hasher()
        found: dict[int, int] = {}
        for start, stop in self._spans(task):
            chunk = self._load(start, stop, space, hashers, found)
            n = stop - start
            result = self._fold(chunk) if self._fold else chunk.updates[0]
            if self._origin and self.whole:
                result = result.add_(space.work("origin", n, self._compute))
            out, view = space.host("out", n, self._out)
            space.take(result, out)
            if not is_finite(out):
                found[-1] = found.get(-1, 0) + count_nonfinite(out)
            if self.hashed:
                written.update(view)
            self.sink.write(self.entry, start, view)
        return self._record(task, written, hashers, found)

    def _copy(self, task: Task, space: Workspace) -> TaskRecord:
        hashers = [hasher() for _ in self.sources]
        differs: set[int] = set()
        for start, stop in self._spans(task):
            kept, kept_bytes = space.host("kept", stop - start, self._out)
            other, other_bytes = space.host("other", stop - start, self._out)
            for i, source in enumerate(self.sources):
                view = other_bytes if i else kept_bytes
                source.read(start, stop - start, view)
                hashers[i].update(view)
                if i and not torch.equal(kept, other):
                    differs.add(i)
            self.sink.write(self.entry, start, kept_bytes)
        return self._record(task, hashers[0], hashers, {}, sorted(differs))

    def _record(
        self,
        task: Task,
        written: Any,
        read: Sequence[Any],
        nonfinite: dict[int, int],
        differs: Sequence[int] = (),
    ) -> TaskRecord:
        digests = [h.hexdigest() for h in read]
        return TaskRecord(self.index, task.index, written.hexdigest(), digests, nonfinite, list(differs))


def ranges(numel: int, length: int) -> list[tuple[int, int]]:
    """Return [start, stop) runs of `length` that cover a tensor; one empty run for an empty tensor."""
    if numel == 0:
        return [(0, 0)]
    return [(start, min(start + length, numel)) for start in range(0, numel, length)]


def sample_spans(numel: int) -> list[tuple[int, int]]:
    """Return a few short runs, evenly spread over the tensor: those of every run alike."""
    if numel <= SAMPLE_RUNS * SAMPLE_LENGTH:
        return [(0, numel)]
    last = numel - SAMPLE_LENGTH
    starts = [last * k // (SAMPLE_RUNS - 1) for k in range(SAMPLE_RUNS)]
    return [(start, start + SAMPLE_LENGTH) for start in starts]


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or Inf: a finite sum proves it; only otherwise each is looked at."""
    total = values.sum(dtype=torch.float32 if values.dtype == torch.float16 else None)
    return math.isfinite(total.item()) or count_nonfinite(values) == 0


def count_nonfinite(values: torch.Tensor) -> int:
    """Return how many values are NaN or Inf."""
    return values.numel() - int(torch.isfinite(values).sum())
