"""Ranges of one tensor, read into a caller's buffer from a file or from memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from submerge.deferred import np
from submerge.errors import WorkError
from submerge.store.format._byte_view import InMemory, byte_view
from submerge.store.format._header import TensorEntry

__all__ = ["ComputedSource", "FileSource", "MemorySource", "Source", "blocks"]

BLOCK = 1 << 22
"""Bytes that are read at a time where all of a tensor is read and none of it is held."""


class Source(Protocol):
    """Something that hands out ranges of one tensor, in elements from the tensor's start."""

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`; it holds exactly that many bytes."""


def blocks(source: Source, start: int, stop: int, itemsize: int) -> Iterator[tuple[int, memoryview]]:
    """Yield elements [start, stop) of a source in blocks: the number of the first element, and the bytes.

    All blocks lie in one buffer: each is valid until the next is asked for.
    """
    length = max(1, BLOCK // itemsize)
    buffer = memoryview(bytearray(min(length, stop - start) * itemsize))
    for first in range(start, stop, length):
        count = min(length, stop - first)
        block = buffer[: count * itemsize]
        source.read(first, count, block)
        yield first, block


def _span(entry_numel: int, itemsize: int, start: int, count: int, into: memoryview) -> tuple[int, int]:
    """Return (first byte, bytes) of a range after checking it; a wrong range is a bug of the caller."""
    if start < 0 or count < 0 or start + count > entry_numel:
        raise ValueError(f"elements {start}…{start + count} are outside a tensor of {entry_numel}")
    if into.nbytes != count * itemsize:
        raise ValueError(f"a buffer of {into.nbytes} bytes cannot hold {count} elements of {itemsize}")
    return start * itemsize, count * itemsize


class FileSource:
    """Ranges of one tensor in a file; reads are positioned, so that threads can share the descriptor."""

    def __init__(self, fd: int, entry: TensorEntry) -> None:
        self._fd = fd
        self._entry = entry
        self._itemsize = entry.itemsize

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into`; raise `WorkError` if the file ends early or cannot be read."""
        first, nbytes = _span(self._entry.numel, self._itemsize, start, count, into)
        if nbytes == 0:
            return
        buffer = into.cast("B")
        where = f"{self._entry.file}, tensor {self._entry.name}"
        done = 0
        while done < nbytes:
            try:
                count_read = _pread_into(self._fd, buffer[done:], self._entry.offset + first + done)
            except OSError as error:
                raise WorkError(f"{where}: reading failed ({error.strerror}) — check the disk") from error
            if count_read == 0:
                raise WorkError(
                    f"{where}: the file ended {nbytes - done} bytes early — it was truncated or replaced "
                    "while it was read; start again with whole files"
                )
            done += count_read


if hasattr(os, "preadv"):

    def _pread_into(fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

else:  # macOS

    def _pread_into(fd: int, buffer: memoryview, offset: int) -> int:
        data = os.pread(fd, min(len(buffer), 1 << 24), offset)
        buffer[: len(data)] = data
        return len(data)


@dataclass(frozen=True)
class ComputedSource:
    """Ranges of a tensor that are computed when they are read, of `compute(start, count)`."""

    compute: Callable[[int, int], InMemory]

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`."""
        into.cast("B")[:] = byte_view(self.compute(start, count))


class MemorySource:
    """Ranges of a tensor in memory, of any type; only one that is not contiguous is copied, once."""

    def __init__(self, values: InMemory) -> None:
        if isinstance(values, np.ndarray):
            values = np.ascontiguousarray(values)
        else:
            values = values.detach().contiguous()
        self._itemsize = values.itemsize
        self._bytes = byte_view(values)
        self._numel = self._bytes.nbytes // self._itemsize

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` by one copy."""
        first, nbytes = _span(self._numel, self._itemsize, start, count, into)
        if nbytes:
            into.cast("B")[:] = self._bytes[first : first + nbytes]
