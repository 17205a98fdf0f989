"""What is asked of a disk: to write at an offset, to flush; and what to tell the user where it refuses."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from submerge.errors import WorkError

__all__ = [
    "UNFINISHED",
    "begin_writeback",
    "pwrite_all",
    "sync_file",
    "sync_folder",
    "whole_file",
    "write_failure",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES)
WRITEBACK = 1 << 24
"""Bytes of a block that the disk is asked to write: to ask for every write takes longer than the write."""


def pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Write bytes at an offset; raise `OSError` where the system refuses.

    One call may write less than it was given: before a disk is full, and never more than 2 GiB on Linux.
    """
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _find_writeback() -> Callable[[int, int, int], object]:
    """Return what asks the system to begin writing a range to the disk; nothing where it cannot be asked."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if call is None:
        return lambda fd, offset, length: None
    offset_t = ctypes.c_int64
    return lambda fd, offset, length: call(fd, offset_t(offset), offset_t(length), _WRITE)


_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and do not wait
_begin_writing = _find_writeback()


def begin_writeback(fd: int, offset: int, length: int) -> None:
    """Begin to write to the disk the blocks of a file that end in a range, so that the last flush is short.

    Within a tensor what ends a block is mostly written last. What is written into it later, as of another
    tensor, is left to the flush.
    """
    first, end = offset // WRITEBACK, (offset + length) // WRITEBACK
    if first < end:
        _begin_writing(fd, first * WRITEBACK, (end - first) * WRITEBACK)


UNFINISHED = ".unfinished"
"""What stands behind the name of a file that is being written."""


@contextmanager
def whole_file(path: Path, *, synced: bool = False) -> Iterator[Path]:
    """Give the path at which to write a file, which has the name `path` once it is complete.

    Who reads `path` meanwhile has the file of before or the new one, and where writing fails, nothing is
    left. With `synced` the content is on the disk before the name is.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        yield unfinished
        if synced:
            sync_file(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries (creations, renames) are on the disk, where the system can tell."""
    try:
        _sync(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except WorkError as error:
        if getattr(error.__cause__, "errno", None) not in _NO_FOLDER_SYNC:
            raise


def _sync(path: Path, flags: int) -> None:
    try:
        fd = os.open(path, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise write_failure(path, error, 0, "flushing to disk") from error


def _size(count: int) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def write_failure(path: Path, error: OSError, need: int, doing: str) -> WorkError:
    """Return the error of a failed write: how much is needed, how much is free, what to do."""
    if error.errno in _FULL:
        try:
            free = _size(shutil.disk_usage(path.parent).free)
        except OSError:
            free = "an unknown amount"
        hint = {
            errno.EDQUOT: "your quota is used up: free some of it, or choose another folder",
            errno.EFBIG: "this file system or a `ulimit -f` allows no file so large: use smaller shards",
        }.get(error.errno or 0, "free some space, or choose a folder on another disk")
        return WorkError(
            f"{path}: {doing} needs {_size(need)}, and {free} is free ({error.strerror}) — {hint}"
        )
    hint = "choose a folder that you may write to"
    if error.errno == errno.ELOOP:
        hint = "there is a symbolic link of this name: remove it"
    return WorkError(f"{path}: {doing} failed ({error.strerror}) — {hint}")
