"""The workers: threads that take ranges of tensors, whatever pass each tensor is in.

A tensor's next pass may start only when all ranges of its last one are done, but other tensors fill the gap,
so no worker waits at a barrier; and one huge tensor is shared by all. Nothing here affects a value:
parts are combined in the order of the elements, and each range is written by one worker.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from submerge.deferred import torch
from submerge.engine.work._passes import Passes, Range, next_pass
from submerge.engine.work._workspace import Workspace

__all__ = ["run_jobs", "single_threaded"]


class _SingleThreaded:
    """Torch's own threads, off while any run is active: the setting belongs to the whole process.

    Where torch is not there, nothing that runs needs it (`prepared`).
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs = 0
        self.before: int | None = None

    def __enter__(self) -> None:
        with self.lock:
            if self.runs == 0 and "torch" in sys.modules:
                self.before = torch.get_num_threads()
                torch.set_num_threads(1)  # the workers are the threads; and sums must not be regrouped
            self.runs += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.runs -= 1
            if self.runs == 0 and self.before is not None:
                torch.set_num_threads(self.before)
                self.before = None


single_threaded = _SingleThreaded()


class _Job:
    """A job that was begun: its generator, the pass that it is in, and the parts that have come in."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._parts: dict[int, Any] = {}

    def advance(self, result: Any = None) -> list[_RangeTask]:
        """Begin the next pass, and return its tasks; none where the last one is done."""
        step = next_pass(self._passes, result)
        if step is None:
            return []
        self._step = step
        return [_RangeTask(self, one, step.work) for one in step.ranges]

    def deliver(self, one: Range, part: Any) -> bool:
        """Take the part of a range, under the pool's lock; return whether it was the pass's last."""
        self._parts[one.number] = part
        return len(self._parts) == len(self._step.ranges)

    def proceed(self) -> list[_RangeTask]:
        """Combine the parts of a pass that is done, and begin the next one; without the lock."""
        parts, self._parts = self._parts, {}
        return self.advance(self._step.combine([parts[one.number] for one in self._step.ranges]))


class _RangeTask(NamedTuple):
    """What a worker takes at a time: one range of the pass that a job is in."""

    job: _Job
    range: Range
    work: Callable[[Range, Workspace], Any]


class _Pool:
    def __init__(self, jobs: Iterator[Passes], device: str | torch.device) -> None:
        self.jobs = jobs
        self.device = device
        self.ready: deque[_RangeTask] = deque()
        self.active = 0  # jobs that have begun and are not done
        self.stopped = False
        self.error: BaseException | None = None
        self.change = threading.Condition()

    def work(self) -> None:
        """Take tasks until there are none, or someone failed."""
        try:
            space = Workspace(self.device)
            while (task := self._next()) is not None:
                self._execute(task, space)
                del task  # or what its job holds would be there beside what the next one begins with
        except BaseException as error:
            with self.change:
                self.error = self.error or error
                self.stopped = True
                self.change.notify_all()

    def _execute(self, task: _RangeTask, space: Workspace) -> None:
        part = task.work(task.range, space)
        with self.change:
            is_last = task.job.deliver(task.range, part)
        if not is_last:
            return
        # Parts are combined, and a method goes on from them, without the lock: that may take long, and nobody
        # else can be at it, for one worker alone delivered the last part.
        tasks = task.job.proceed()
        with self.change:
            self.ready.extendleft(reversed(tasks))  # its bytes are still in the page cache
            self.active -= not tasks
            self.change.notify_all()

    def _next(self) -> _RangeTask | None:
        """Return a task; None at the end. A job is begun only where no task is ready.

        So each job that has begun has a worker busy with it, and no more jobs hold results than there are
        workers.
        """
        with self.change:
            while not self.stopped:
                while not self.ready and (passes := next(self.jobs, None)) is not None:
                    tasks = _Job(passes).advance()
                    self.active += bool(tasks)
                    self.ready.extend(tasks)
                if self.ready:
                    return self.ready.popleft()
                if not self.active:
                    self.change.notify_all()
                    return None
                self.change.wait()
        return None


def run_jobs(
    jobs: Iterator[Passes],
    *,
    threads: int,
    device: str | torch.device,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run every job to its end with `threads` workers.

    `tick` is called about ten times a second by the calling thread, where it may raise (as Ctrl-C does) to
    stop the run: the workers finish their ranges, and the error is raised. So is any worker's first error.
    """
    pool = _Pool(jobs, device)
    workers = [threading.Thread(target=pool.work, name=f"submerge-{i}", daemon=True) for i in range(threads)]
    with single_threaded:
        _run(pool, workers, tick)
    if pool.error is not None:
        raise pool.error


def _run(pool: _Pool, workers: Sequence[threading.Thread], tick: Callable[[], None]) -> None:
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.1)
                tick()
    finally:
        with pool.change:
            pool.stopped = True
            pool.change.notify_all()
        for worker in workers:
            if worker.is_alive():  # an interruption may come before all of them have started
                worker.join()
