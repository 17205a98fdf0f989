"""The journal of a run: a line for each finished piece of work, so that a later run goes on from it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError, WorkError

__all__ = ["JOURNAL", "Journal"]

JOURNAL = ".journal.jsonl"
"""Hidden, so that no file which a model carries has its name."""


class Journal:
    """An append-only file of JSON lines, the first of which says what work it belongs to.

    A line is written by one call, after the work it tells of; a line that a crash cut short is
    ignored. The file is locked for as long as the journal is open, so that two runs cannot
    write the same output.
    """

    def __init__(self, folder: Path, head: dict[str, Any], *, resume: bool) -> None:
        """Open the journal in `folder`; with `resume`, read what an earlier run with this head left.

        Raises `RequestError` if another process holds it, or if it belongs to other work.
        """
        self.path = folder / JOURNAL
        self.lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        try:
            self._fd = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise WorkError(f"{self.path}: cannot be opened ({error.strerror})") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # any other: a file system without locks
                os.close(self._fd)
                what, hint = "another run is writing this output", "wait for it, or choose another output"
                raise RequestError(Problem(what, str(folder), hint)) from error
        earlier = self._read() if resume else []
        if earlier and earlier[0] != head:
            os.close(self._fd)
            what = "the unfinished output was made from another recipe, or from inputs that have changed"
            raise RequestError(Problem(what, str(folder), "start again without --resume"))
        self.lines = earlier[1:]
        if not earlier:
            os.ftruncate(self._fd, 0)
            self.append(head)

    def _read(self) -> list[dict[str, Any]]:
        data = self.path.read_bytes()
        lines, sound = [], 0
        for text in data.splitlines(keepends=True):
            try:
                line = json.loads(text) if text.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict):
                break  # what follows damage cannot be trusted
            lines.append(line)
            sound += len(text)
        if sound < len(data):
            os.ftruncate(self._fd, sound)  # or what is added would stand behind the damage
        return lines

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; raise `WorkError` if it cannot be written."""
        data = (json.dumps(line, separators=(",", ":")) + "\n").encode()
        with self._lock:
            try:
                written = os.write(self._fd, data)
            except OSError as error:
                raise WorkError(
                    f"{self.path}: writing failed ({error.strerror}) — free some space"
                ) from error
        if written != len(data):
            raise WorkError(f"{self.path}: writing stopped short — free some space")

    def close(self) -> None:
        """Release the journal; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
