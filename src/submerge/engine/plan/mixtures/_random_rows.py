"""Weights that are drawn at random whenever they are read: number i is a hash of its position."""

from __future__ import annotations

from dataclasses import dataclass

from submerge.algebra import normal, uniform
from submerge.deferred import np
from submerge.store import FileTable, Source

__all__ = ["RandomRows"]

_BLOCK = 1 << 20
"""Numbers that are drawn at a time."""


@dataclass(frozen=True)
class RandomRows:
    """Numbers of the stream `key`, float32: normal ones, or with a `bound` b uniform ones in [−b, b)."""

    key: int
    bound: float | None = None

    def open(self, table: FileTable) -> Source:
        """Return where to read them, by ranges of their elements."""
        return self

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with numbers `start … start + count − 1`."""
        out = np.frombuffer(into.cast("B"), np.float32)
        for first in range(0, count, _BLOCK):
            part = out[first : first + _BLOCK]
            if self.bound is None:
                part[:] = normal(self.key, start + first, part.size)
            else:
                part[:] = (uniform(self.key, start + first, part.size).numpy() * 2 - 1) * self.bound
