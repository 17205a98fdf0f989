"""One run over a plan: the jobs of all tensors are taken to their ends, and the records are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from submerge.engine.output._manifest import make_manifest
from submerge.engine.output._records import Records
from submerge.engine.output._report import Progress
from submerge.engine.output._target import OutputTarget
from submerge.engine.plan import MergePlan
from submerge.engine.work import (
    Finished,
    Passes,
    RangeRecord,
    Workspace,
    can_fork,
    nonfinite_error,
    prepared,
    ranges,
    run_forked,
    run_jobs,
    run_passes,
    single_threaded,
)
from submerge.store import FileTable, Manifest

__all__ = ["Run"]

LARGE = 32
"""A tensor of more than one part in so many is begun before the others."""
FIRST = 1 << 19
"""Elements of a tensor that is merged before workers are forked, at least."""


@dataclass
class Run:
    """The work of a merge into a target.

    Attributes:
        target: what is written.
        records: what is done.
        seconds: how long it took.
        resumed: ranges that an earlier run had finished.
        written: the `size` of all that is finished.
        peak: the most memory that forked workers held, in bytes.
    """

    target: OutputTarget[Any]
    records: Records = field(init=False)
    seconds: float = 0.0
    resumed: int = 0
    written: int = 0
    peak: int = 0

    def __post_init__(self) -> None:
        self.records = Records(self.plan)

    @property
    def plan(self) -> MergePlan:
        """The plan of the merge."""
        return self.target.plan

    def execute(self, device: str, progress: Callable[[Progress], None]) -> None:
        """Do what is left to do; raise `WorkError` where values, disk or inputs do not allow it."""
        meter, total = self.target.meter, self.target.total

        def tick() -> None:
            progress(Progress(self.written, total, meter.read + meter.written, time.perf_counter() - begun))

        begun = time.perf_counter()
        with FileTable() as inputs, self.target.open() as writer:
            self._resume()
            self._count_adapters()
            with prepared(self.plan.tensors):
                self._run_jobs(inputs, writer, device, tick)
            tick()
            self.seconds = time.perf_counter() - begun
            self._check_values()
            self.target.output.check_inputs()
            self.target.complete(writer, self.records)
            self._check_values()  # of what is in a bank alone

    def manifest(self) -> Manifest:
        """Return the content of submerge.json."""
        return make_manifest(self.plan, self.target, self.records)

    def _resume(self) -> None:
        """Take up what an earlier run finished."""
        for record in self.target.resume():
            if record not in self.records:
                self._keep(record)
                self.resumed += 1

    def _count_adapters(self) -> None:
        """Count the adapters' files as read: each is small, and is read about once."""
        files = {file for model in self.plan.models if model.adapter for file in model.adapter.files}
        self.target.meter.add_read(sum(file.stat().st_size for file in files), 0.0)

    def _run_jobs(self, inputs: FileTable, writer: Any, device: str, tick: Callable[[], None]) -> None:
        """Run the jobs that are not done: in processes where they help, else in threads."""
        workers, tensors = self.plan.budget.workers, self.plan.tensors
        left = [i for i, t in enumerate(tensors) if len(self.records.done(i)) < len(ranges(t.numel, t.block))]
        sizes = [tensors[i].numel for i in left]

        def job(index: int, finished: Finished) -> Passes:
            return self.target.job(index, inputs, writer, finished, self.records.done(index))

        if self.target.forks and can_fork(sizes, workers, device):
            if (first := self._first(left)) is not None:
                with single_threaded:
                    run_passes(job(first, self._finished), Workspace())
                left.remove(first)
            share = sum(sizes) // LARGE
            left.sort(key=lambda i: tensors[i].numel < share)  # the large ones first, for an even end
            self.peak = run_forked(
                left, job, self._finished, meter=self.target.meter, workers=workers, tick=tick
            )
        else:
            jobs = (job(index, self._finished) for index in left)
            run_jobs(jobs, threads=workers, device=device, tick=tick)

    def _first(self, left: Sequence[int]) -> int | None:
        """Return the tensor that is merged before the fork: workers inherit what it imports and compiles.

        It is large enough to go the way of most, and no larger than need be.
        """
        tensors = self.plan.tensors
        merged = [i for i in left if tensors[i].action == "merge" and not tensors[i].matrix]
        large = [i for i in merged if tensors[i].numel >= FIRST]
        return min(large, key=lambda i: tensors[i].numel, default=None)

    def _finished(self, record: RangeRecord) -> None:
        """Take the record of a range that was just finished: from any worker, or from a worker process."""
        self.target.accept(record)
        self._keep(record)

    def _keep(self, record: RangeRecord) -> None:
        self.records.add(record)
        self.written += self.target.size(record)

    def _check_values(self) -> None:
        """Refuse NaN and Inf, unless they are allowed."""
        nonfinite = self.records.nonfinite()
        if nonfinite and not self.plan.settings.allow_nonfinite:
            raise nonfinite_error(nonfinite)
