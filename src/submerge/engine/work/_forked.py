"""Workers as forked processes, each with an interpreter of its own.

Threads share one interpreter lock, and a merge is made of short operations: each hands the lock over, and
with cache-sized chunks the waiting costs more than the arithmetic. A forked worker inherits plan and
open files, takes one tensor after another from a common queue, and sends back the record of each range
that it wrote. It computes what a thread would, in the same order.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

from submerge.deferred import torch
from submerge.engine.work._meter import Meter
from submerge.engine.work._passes import Passes, run_passes
from submerge.engine.work._record import RangeRecord
from submerge.engine.work._threads import single_threaded
from submerge.engine.work._workspace import Workspace
from submerge.errors import WorkError
from submerge.process import peak_resident

__all__ = ["can_fork", "run_forked"]

WORTHWHILE = 1 << 24
"""Elements of a merge from which on processes are forked."""
_INDEX = struct.Struct("=I")
_LENGTH = struct.Struct("=I")
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, of <sys/prctl.h>

Finished: TypeAlias = Callable[[RangeRecord], None]
"""Takes the record of a range that is written."""
MakeJob: TypeAlias = Callable[[int, Finished], Passes]
"""Makes the job of a number, which tells what it finishes."""


def can_fork(sizes: Sequence[int], workers: int, device: str | torch.device) -> bool:
    """Return whether forked workers are safe here, and share tensors of these sizes about evenly.

    Not where other Python threads run, which may hold locks that nobody in a child would release; nor
    for a tensor so large that the others would wait for the one worker that has it; nor for so little
    work that a process is not worth its start.
    """
    if workers < 2 or sum(sizes) < WORTHWHILE or sys.platform != "linux" or str(device) != "cpu":
        return False
    if threading.active_count() > 1 or _uses_cuda():
        return False
    return max(sizes) * 2 * workers <= sum(sizes)


def _uses_cuda() -> bool:
    return "torch" in sys.modules and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Finished:
    """A worker's last message: its peak memory in bytes, and the error that ended it, if any."""

    peak: int
    error: BaseException | None = None


class _Worker:
    """The parent's end of one forked process."""

    def __init__(self, pid: int, results: BinaryIO) -> None:
        self.pid = pid
        self.results = results

    def read(self) -> Any:
        """Return the next message; raise `WorkError` if the process is gone."""
        head = self.results.read(_LENGTH.size)
        if len(head) == _LENGTH.size:
            body = self.results.read(_LENGTH.unpack(head)[0])
            if len(body) == _LENGTH.unpack(head)[0]:
                return pickle.loads(body)  # written by our own child
        raise WorkError(
            "a worker process was ended from outside, perhaps for the lack of memory — allow less with "
            "--max-memory, or use --threads 1; --resume keeps the work that is done"
        )

    def end(self, *, kill: bool) -> None:
        """Wait for the process, after stopping it if asked to."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        self.results.close()
        os.waitpid(self.pid, 0)


def run_forked(
    indices: Sequence[int],
    job: MakeJob,
    finished: Finished,
    *,
    meter: Meter,
    workers: int,
    tick: Callable[[], None],
) -> int:
    """Run the jobs of these indices to their ends in `workers` processes; return their peak memory in all.

    `job(index, send)` is called in the process that runs it, and gives what it finishes to `send`;
    `finished(record)` is called in the parent, and so is `tick`, about ten times a second, where it may raise
    (as Ctrl-C does): the workers are then stopped at once, and the ranges that they were writing count as not
    written. The first error of any worker is raised. What the workers move is counted by `meter` as they do.
    """
    own, peaks = peak_resident(), 0
    with single_threaded, _Pool(indices) as pool:  # so that no child meets torch's threads, which fork leaves
        pool.start(workers, job, meter)
        while pool.workers:
            for worker in pool.ready():
                message = worker.read()
                if isinstance(message, RangeRecord):
                    finished(message)
                    continue
                if message.error is not None:
                    raise message.error
                peaks += max(0, message.peak - own)
                pool.end(worker)
            tick()
    return own + peaks


class _Pool:
    """The workers of a run, and the queue of its jobs; a context manager that stops those that are left."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.workers: dict[int, _Worker] = {}
        self._waiting = b"".join(_INDEX.pack(index) for index in indices)
        self._queue, self._feed = os.pipe()
        os.set_blocking(self._feed, False)

    def start(self, count: int, job: MakeJob, meter: Meter) -> None:
        """Fork workers, which begin at once with what is in the queue."""
        for _ in range(count):
            worker = _fork(self._queue, self._feed, job, meter, list(self.workers.values()))
            self.workers[worker.results.fileno()] = worker
        os.close(self._queue)
        self._queue = -1

    def ready(self) -> list[_Worker]:
        """Return the workers that have sent something, after a tenth of a second at most."""
        if self._feed >= 0 and not self._fill():
            os.close(self._feed)
            self._feed = -1
        ready, _, _ = select.select(list(self.workers), [self._feed] if self._feed >= 0 else [], [], 0.1)
        return [self.workers[fd] for fd in ready]

    def _fill(self) -> bool:
        """Put into the queue what it has room for, and return whether more is waiting."""
        if self._waiting:
            # it is full, or no worker is left, which its results tell
            with suppress(BlockingIOError, BrokenPipeError):
                self._waiting = self._waiting[os.write(self._feed, self._waiting) :]
        return bool(self._waiting)

    def end(self, worker: _Worker) -> None:
        """Wait for a worker that has nothing left to do."""
        self.workers.pop(worker.results.fileno()).end(kill=False)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.end(kill=True)
        for fd in (self._queue, self._feed):
            if fd >= 0:
                os.close(fd)


def _fork(queue: int, feed: int, job: MakeJob, meter: Meter, others: Sequence[_Worker]) -> _Worker:
    readable, writable = os.pipe()
    parent, row = os.getpid(), meter.shared()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside native threads, which sleep
        pid = os.fork()
    if pid:
        os.close(writable)
        return _Worker(pid, os.fdopen(readable, "rb"))
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)  # or orphans would go on writing
        if os.getppid() != parent:
            os._exit(1)
        for fd in (feed, readable, *(other.results.fileno() for other in others)):
            os.close(fd)
        with os.fdopen(writable, "wb") as results:
            meter.count_in(row)
            _work(queue, job, results)
        status = 0
    finally:
        os._exit(status)


def _work(queue: int, job: MakeJob, results: BinaryIO) -> None:
    """Run jobs until the queue is empty, in the child."""

    def send(message: Any) -> None:
        body = pickle.dumps(message)
        results.write(_LENGTH.pack(len(body)) + body)
        results.flush()

    error = None
    try:
        space = Workspace()
        while len(taken := os.read(queue, _INDEX.size)) == _INDEX.size:
            run_passes(job(_INDEX.unpack(taken)[0], send), space)
    except BaseException as met:
        error = _portable(met)
    send(_Finished(peak_resident(), error))


def _portable(error: BaseException) -> BaseException:
    """Return the error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
