"""What a worker notes of a range while it is at it: digests of what is read and written, and NaN and Inf."""

from __future__ import annotations

from typing import Any

from submerge.store import hasher

__all__ = ["OUTPUT", "RangeLog"]

OUTPUT = -1
"""The key of the output's count, beside the members' positions."""


class RangeLog:
    """Digests of the bytes of `sources` inputs and of the output, and counts of NaN and Inf.

    Where the output is a `copy` its bytes are those of the first source, which are digested once. Without
    `hashed` there are counts alone: what is merged in memory is compared with no file.
    """

    def __init__(self, sources: int, *, hashed: bool = True, copy: bool = False) -> None:
        self.nonfinite: dict[int, int] = {}
        self._read: list[Any] = [hasher() for _ in range(sources)] if hashed else []
        self._written: list[Any] = []
        if hashed:
            self._written = [self._read[0] if copy else hasher()]

    def count(self, key: int, nonfinite: int) -> None:
        """Add NaN and Inf to those of a member, or of the `OUTPUT`."""
        self.nonfinite[key] = self.nonfinite.get(key, 0) + nonfinite

    def read(self, source: int, data: memoryview) -> None:
        """Take in bytes of a source."""
        if self._read:
            self._read[source].update(data)

    def wrote(self, data: memoryview) -> None:
        """Take in bytes of the output."""
        for output in self._written:
            output.update(data)

    @property
    def inputs(self) -> list[str]:
        """The digest of each source's bytes."""
        return [source.hexdigest() for source in self._read]

    @property
    def output(self) -> str:
        """The digest of the output's bytes."""
        return "".join(output.hexdigest() for output in self._written)
