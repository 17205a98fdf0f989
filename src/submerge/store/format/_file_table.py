"""The weight files of a run, opened once each."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Lock

from submerge.errors import WorkError
from submerge.store.format._header import TensorEntry
from submerge.store.format._source import FileSource

__all__ = ["FileTable", "file_identity"]


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
        itemsize = entry.itemsize
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
