"""Runs a program as a process of its own and measures what it took."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FailedRunError", "ProcessRun", "measure", "measure_from_cache", "merge_command"]

POLL_S = 0.05


class FailedRunError(Exception):
    """A measured program ended with an error; its log says why."""


@dataclass(frozen=True)
class ProcessRun:
    """What one process took.

    `peak_bytes` is the largest resident set as the kernel saw it, file pages that the process
    mapped included; `private_bytes` leaves those out and is sampled, so it can miss short peaks
    (None where /proc does not tell). `cpu_seconds` is the time of all its threads on all cores, which other
    processes on the machine change little.
    """

    seconds: float
    peak_bytes: int
    private_bytes: int | None
    cpu_seconds: float


def measure(command: Sequence[str], log: Path) -> ProcessRun:
    """Run `command` to its end, output to `log`; raise `FailedRunError` if it does not succeed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # an installed package has its bytecode on disk: without it, its compilation would be measured, too
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
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
    peak = watcher.peak or usage.ru_maxrss * unit
    return ProcessRun(seconds, peak, watcher.private, usage.ru_utime + usage.ru_stime)


def merge_command(recipe: Path, out: Path, threads: int, *options: str, command: str = "merge") -> list[str]:
    """Return the command line that merges by a recipe, by this command of `submerge`."""
    program = [sys.executable, "-m", "submerge", command, str(recipe), "-o", str(out)]
    return [*program, "--threads", str(threads), *options]


def measure_from_cache(
    command: Sequence[str],
    log: Path,
    out: Path,
    inputs: Iterable[Path],
    look: Callable[[Path], None] | None = None,
) -> ProcessRun:
    """Run a command that writes the folder `out`, with its input files in the page cache.

    The folder is removed before and after, and before that `look` is called with it. What earlier runs left
    to be written is written first, for it is not this run's work.
    """
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    read_through(inputs)
    try:
        run = measure(command, log)
        if look is not None:
            look(out)
        return run
    finally:
        shutil.rmtree(out, ignore_errors=True)


def read_through(files: Iterable[Path]) -> None:
    """Read files once, so that they lie in the page cache as far as memory allows."""
    buffer = bytearray(16 << 20)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class _Memory:
    """Samples the memory of a process and of its children until it ends.

    The kernel's own high-water mark (VmHWM) only grows, so that a sample misses no peak of a single
    process but one in the last moments; the resource usage of a finished child would count its parent's
    memory too. Pages that several processes share are counted once (Pss).
    """

    def __init__(self, pid: int) -> None:
        self.peak: int | None = None
        self.private: int | None = None
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
                if children:
                    texts = [_rollup(pid) for pid in (str(self._pid), *children)]
                    resident = sum(_kilobytes("Pss", text) or 0 for text in texts)
                    own = sum(_kilobytes("Pss_Anon", text) or 0 for text in texts)
                else:
                    text = Path(f"/proc/{self._pid}/status").read_text()
                    resident, own = _kilobytes("VmHWM", text) or 0, _kilobytes("RssAnon", text) or 0
            except OSError:
                return
            self.peak = max(self.peak or 0, resident) or None
            self.private = max(self.private or 0, own) or None


def _rollup(pid: str) -> str:
    """Return the kernel's sum over a process' mappings; nothing for one that has just ended."""
    try:
        return Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return ""


def _kilobytes(name: str, text: str) -> int | None:
    line = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(line[1]) * 1024 if line else None
