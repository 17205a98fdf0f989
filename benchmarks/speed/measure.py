"""Runs a program as a whole process and says what it took."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FailedRunError", "Run", "measure", "read_through"]

POLL_S = 0.05


class FailedRunError(Exception):
    """A measured program ended with an error; its log says why."""


@dataclass(frozen=True)
class Run:
    """What one process took.

    `peak_bytes` is the largest resident set as the kernel saw it, file pages that the process
    mapped included; `private_bytes` leaves those out and is sampled, so it can miss short peaks
    (None where /proc does not tell).
    """

    seconds: float
    peak_bytes: int
    private_bytes: int | None


def measure(command: Sequence[str], log: Path) -> Run:
    """Run `command` to its end, output to `log`; raise `FailedRunError` if it does not succeed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(log, "wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        watcher = _Memory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    watcher.stop()
    if process.returncode:
        tail = log.read_text(errors="replace")[-1500:]
        raise FailedRunError(
            f"{' '.join(command)}\nended with {process.returncode}; the end of {log}:\n{tail}"
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, watcher.peak or usage.ru_maxrss * unit, watcher.private)


def read_through(files: Iterable[Path]) -> None:
    """Read files once, so that they lie in the page cache as far as memory allows."""
    buffer = bytearray(16 << 20)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class _Memory:
    """Samples a process's memory until it ends.

    The kernel's own high-water mark (VmHWM) only grows, so that a sample misses no peak but one in
    the last moments; the resource usage of a finished child would count its parent's memory too.
    """

    def __init__(self, pid: int) -> None:
        self.peak: int | None = None
        self.private: int | None = None
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                text = self._status.read_text()
            except OSError:
                return
            self.peak = max(filter(None, (self.peak, _kilobytes("VmHWM", text))), default=None)
            self.private = max(filter(None, (self.private, _kilobytes("RssAnon", text))), default=None)


def _kilobytes(name: str, text: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
