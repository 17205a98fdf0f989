"""Counts what passes through sources and sinks, and how long each kept its worker waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass
from mmap import mmap
from threading import Lock

from submerge.store import Sink, Source, TensorEntry

__all__ = ["Meter"]

_ROW = 4 * 8
"""Bytes of a row: bytes read, bytes written, seconds reading, seconds writing, each a double."""


class Meter:
    """Bytes and seconds of all reads and writes of a run, in this process and in those forked from it."""

    def __init__(self) -> None:
        self._own = memoryview(bytearray(_ROW)).cast("d")
        self._others: list[memoryview[float]] = []
        self._lock = Lock()

    @property
    def read(self) -> int:
        """Bytes that were read."""
        return int(self._sum(0))

    @property
    def written(self) -> int:
        """Bytes that were written."""
        return int(self._sum(1))

    @property
    def reading(self) -> float:
        """Seconds that workers waited for reads."""
        return self._sum(2)

    @property
    def writing(self) -> float:
        """Seconds that workers waited for writes."""
        return self._sum(3)

    def _sum(self, column: int) -> float:
        return float(sum(row[column] for row in (self._own, *self._others)))

    def shared(self) -> memoryview[float]:
        """Return a row that a process forked from this one counts in, and that is counted here."""
        self._others.append(memoryview(mmap(-1, _ROW)).cast("d"))
        return self._others[-1]

    def count_in(self, row: memoryview[float]) -> None:
        """Count in this row from now on, in a forked process: what came before was counted by the parent."""
        self._own, self._others = row, []

    def source(self, inner: Source) -> Source:
        """Return a source that reads from `inner` and is counted here."""
        return _Source(inner, self)

    def sink(self, inner: Sink) -> Sink:
        """Return a sink that writes to `inner` and is counted here."""
        return _Sink(inner, self)

    def add_read(self, nbytes: int, seconds: float) -> None:
        """Count a read."""
        with self._lock:
            self._own[0] += nbytes
            self._own[2] += seconds

    def add_written(self, nbytes: int, seconds: float) -> None:
        """Count a write."""
        with self._lock:
            self._own[1] += nbytes
            self._own[3] += seconds


@dataclass(frozen=True, slots=True)
class _Source:
    inner: Source
    meter: Meter

    def read(self, start: int, count: int, into: memoryview) -> None:
        begun = time.perf_counter()
        self.inner.read(start, count, into)
        self.meter.add_read(into.nbytes, time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class _Sink:
    inner: Sink
    meter: Meter

    def write(self, entry: TensorEntry, start: int, data: memoryview) -> None:
        begun = time.perf_counter()
        self.inner.write(entry, start, data)
        self.meter.add_written(data.nbytes, time.perf_counter() - begun)
