"""Output files: laid out and reserved on disk before the first byte is computed, then written by ranges."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from submerge.errors import WorkError
from submerge.store.format._byte_view import InMemory, byte_view
from submerge.store.format._disk import begin_writeback, pwrite_all, write_failure
from submerge.store.format._header import TensorEntry
from submerge.store.format._shards import Shard

__all__ = ["MemorySink", "ShardWriter", "Sink", "preallocate"]

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # never write through a link, wherever it leads


class Sink(Protocol):
    """Something that takes ranges of output tensors, in elements from the tensor's start."""

    def write(self, entry: TensorEntry, start: int, data: memoryview) -> None:
        """Store `data` at element `start` of the tensor that `entry` describes."""


def preallocate(folder: Path, shard: Shard) -> None:
    """Create a shard's file with its header and reserve its full size on disk.

    An existing file of that name is replaced. Raises `WorkError` when the space or the permission is
    missing, and then leaves no file behind.
    """
    path = folder / shard.file
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NOFOLLOW, 0o666)
    except OSError as error:
        raise write_failure(path, error, shard.size, "creating the file") from error
    try:
        try:
            _reserve(fd, shard.size)
            pwrite_all(fd, memoryview(shard.header), 0)
        finally:
            os.close(fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise write_failure(path, error, shard.size, "reserving the file") from error


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(fd, size)  # where a file system cannot reserve: a full disk shows later


class ShardWriter:
    """A sink over preallocated shard files; positioned writes, so that threads can share it."""

    def __init__(self, folder: Path, shards: Iterable[Shard]) -> None:
        self._folder = folder
        self._fds: dict[str, int] = {}
        try:
            for shard in shards:
                self._fds[shard.file] = self._open(folder / shard.file, shard.size)
        except BaseException:
            self.close()
            raise

    def write(self, entry: TensorEntry, start: int, data: memoryview) -> None:
        """Write `data` at element `start`; raise `WorkError` when the disk is full or fails."""
        first = start * entry.itemsize
        if start < 0 or first + data.nbytes > entry.nbytes:
            raise ValueError(f"bytes {first}…{first + data.nbytes} are outside tensor {entry.name}")
        if data.nbytes == 0:
            return
        fd = self._fds[str(entry.file)]
        try:
            pwrite_all(fd, data.cast("B"), entry.offset + first)
            begin_writeback(fd, entry.offset + first, data.nbytes)
        except OSError as error:
            path = self._folder / str(entry.file)
            raise write_failure(path, error, data.nbytes, f"writing tensor {entry.name}") from error

    def sync(self) -> None:
        """Wait until everything written so far is on the disk."""
        for name, fd in self._fds.items():
            try:
                os.fsync(fd)
            except OSError as error:
                raise write_failure(self._folder / name, error, 0, "flushing to disk") from error

    def close(self) -> None:
        """Close every file; may be called twice."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _open(path: Path, size: int) -> int:
        try:
            fd = os.open(path, os.O_WRONLY | _NOFOLLOW)
        except OSError as error:
            raise write_failure(path, error, size, "opening the file") from error
        actual = os.fstat(fd).st_size
        if actual != size:
            os.close(fd)
            raise WorkError(f"{path}: has {actual} bytes, but the plan says {size} — start without --resume")
        return fd


class MemorySink:
    """A sink into tensors or arrays in memory, by name."""

    def __init__(self, tensors: Mapping[str, InMemory]) -> None:
        self._tensors = tensors

    def write(self, entry: TensorEntry, start: int, data: memoryview) -> None:
        """Store `data` at element `start`."""
        first = start * entry.itemsize
        byte_view(self._tensors[entry.name])[first : first + data.nbytes] = data
