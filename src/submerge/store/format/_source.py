"""Ranges of one tensor, read into a caller's buffer from a file or from memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Protocol

from submerge.deferred import torch
from submerge.errors import WorkError
from submerge.store.format._byte_view import byte_view
from submerge.store.format._dtypes import DTYPES
from submerge.store.format._header import TensorEntry

__all__ = ["FileSource", "FileTable", "MemorySource", "Source", "blocks", "file_identity"]

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
        self._itemsize = DTYPES[entry.dtype].itemsize

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


class MemorySource:
    """Ranges of a tensor in memory, of any type; only a non-contiguous tensor is copied, once."""

    def __init__(self, tensor: torch.Tensor) -> None:
        flat = tensor.detach().contiguous().reshape(-1)
        self._itemsize = flat.element_size()
        self._numel = flat.numel()
        self._bytes = byte_view(flat)

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` by one copy."""
        first, nbytes = _span(self._numel, self._itemsize, start, count, into)
        if nbytes:
            into.cast("B")[:] = self._bytes[first : first + nbytes]


class FileTable:
    """The open files of a run, each opened once, read-only; a context manager that closes them.

    Safe to share between threads; close it only after the last read.
    """

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}
        self._lock = Lock()
        self._closed = False

    def source(self, entry: TensorEntry) -> FileSource:
        """Return the source of a tensor that lies in a file."""
        return FileSource(self._open(entry), entry)

    def advise(self, entry: TensorEntry, start: int, count: int) -> None:
        """Tell the system that these elements will be read soon; a hint that never fails."""
        if entry.file is None or not hasattr(os, "posix_fadvise"):
            return
        itemsize = DTYPES[entry.dtype].itemsize
        fd = self._open(entry)
        try:
            os.posix_fadvise(fd, entry.offset + start * itemsize, count * itemsize, os.POSIX_FADV_WILLNEED)
        except OSError:
            return

    def close(self) -> None:
        """Close every file; may be called twice."""
        with self._lock:
            self._closed = True
            while self._fds:
                os.close(self._fds.popitem()[1])

    def __enter__(self) -> FileTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, entry: TensorEntry) -> int:
        path = entry.file
        if path is None:
            raise ValueError(f"tensor {entry.name} lies in memory, not in a file")
        with self._lock:
            if self._closed:
                raise ValueError("the table of files is closed")
            fd = self._fds.get(path)
            if fd is None:
                fd = self._fds[path] = _open_file(path)
        return fd


def _open_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        hint = (
            "raise the limit of open files (`ulimit -n 4096`)"
            if error.errno == errno.EMFILE
            else "it was there when the headers were read"
        )
        raise WorkError(f"{path}: cannot be opened ({error.strerror}) — {hint}") from error


def file_identity(path: Path) -> dict[str, int]:
    """Return what tells a file from a changed one without reading it: `size` and `mtime_ns`."""
    stat = os.stat(path)
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
