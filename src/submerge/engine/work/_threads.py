"""The workers: threads that take ranges of tensors, whatever pass each tensor is in.

A tensor's next pass may start only when its last one is whole, but other tensors fill the gap, so
no worker waits at a barrier; and one huge tensor is shared by all. Nothing here affects a value:
parts are combined in the order of the elements, and each range is written by one worker.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from submerge.deferred import torch
from submerge.engine.work._job import Job, Task
from submerge.engine.work._workspace import Workspace

__all__ = ["run_jobs"]


class _SingleThreaded:
    """Torch's own threads, off while any run is active: the setting belongs to the whole process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs = 0
        self.before = 1

    def enter(self) -> None:
        with self.lock:
            if self.runs == 0:
                self.before = torch.get_num_threads()
                torch.set_num_threads(1)  # the workers are the threads; and sums must not be regrouped
            self.runs += 1

    def leave(self) -> None:
        with self.lock:
            self.runs -= 1
            if self.runs == 0:
                torch.set_num_threads(self.before)


_single = _SingleThreaded()


class _Pool:
    def __init__(self, jobs: Iterator[Job], finished: Callable[[Task, Any], None], device: torch.device):
        self.jobs = jobs
        self.finished = finished
        self.device = device
        self.ready: deque[Task] = deque()
        self.active = 0  # jobs that have begun and are not done
        self.stopped = False
        self.error: BaseException | None = None
        self.change = threading.Condition()

    def work(self) -> None:
        """Take tasks until there are none, or someone failed."""
        space = Workspace(self.device)
        try:
            while (task := self._next()) is not None:
                result = task.job.work(task, space)
                self.finished(task, result)
                with self.change:
                    whole = task.job.deliver(task, result)
                if whole:
                    tasks = task.job.proceed()
                    with self.change:
                        self.ready.extendleft(reversed(tasks))  # its bytes are still in the page cache
                        self.active -= not tasks
                        self.change.notify_all()
        except BaseException as error:
            with self.change:
                self.error = self.error or error
                self.stopped = True
                self.change.notify_all()

    def _next(self) -> Task | None:
        with self.change:
            while not self.stopped:
                while not self.ready and (job := next(self.jobs, None)) is not None:
                    tasks = job.begin()
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
    jobs: Iterator[Job],
    finished: Callable[[Task, Any], None],
    *,
    threads: int,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run every job to its end with `threads` workers.

    `finished(task, result)` is called by the worker after each task; `tick` about ten times a
    second by the calling thread, where it may raise (as Ctrl-C does) to stop the run: the workers
    finish their chunk's task, and the error is raised. So is the first error of any worker.
    """
    pool = _Pool(jobs, finished, device)
    workers = [threading.Thread(target=pool.work, name=f"submerge-{i}", daemon=True) for i in range(threads)]
    _single.enter()
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
            worker.join()
        _single.leave()
    if pool.error is not None:
        raise pool.error
