"""Counts what passes through sources and sinks, and how long each kept its worker waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Lock

from submerge.store import Sink, Source, TensorEntry

__all__ = ["Meter"]


@dataclass
class Meter:
    """Bytes and seconds of all reads and writes of a run."""

    read: int = 0
    written: int = 0
    reading: float = 0.0
    writing: float = 0.0
    _lock: Lock = field(default_factory=Lock)

    def __getstate__(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, float]) -> None:
        vars(self).update(state, _lock=Lock())

    def clear(self) -> None:
        """Start from nothing."""
        self.read = self.written = 0
        self.reading = self.writing = 0.0

    def add(self, other: Meter) -> None:
        """Add what another meter has counted."""
        self.add_read(other.read, other.reading)
        self.add_written(other.written, other.writing)

    def source(self, inner: Source) -> Source:
        """Return a source that reads from `inner` and is counted here."""
        return _Source(inner, self)

    def sink(self, inner: Sink) -> Sink:
        """Return a sink that writes to `inner` and is counted here."""
        return _Sink(inner, self)

    def add_read(self, nbytes: int, seconds: float) -> None:
        with self._lock:
            self.read += nbytes
            self.reading += seconds

    def add_written(self, nbytes: int, seconds: float) -> None:
        with self._lock:
            self.written += nbytes
            self.writing += seconds


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
