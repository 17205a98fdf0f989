"""The folder of a state: one writer at a time, each change complete or not made at all.

A change writes its new files first, down to the disk, and then puts a new `state.json` into the place of the
old one by one rename. Before that rename the state is the old one, after it the new one, and then what it no
longer names is removed. What a process that was killed has left is not named by `state.json` either: the next
writer removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from submerge.continual._manifest import DAMAGED, STATE_FILE, FileRecord, StateManifest
from submerge.engine.output import unfinished_folder
from submerge.errors import Problem, RequestError, SubmergeError, WorkError, writing
from submerge.store import FileTable, TensorEntry, file_digest, read_header, sync_folder, whole_file
from submerge.store.format import UNFINISHED

__all__ = ["LOCK", "StateFolder", "locked", "new_folder"]

LOCK = ".lock"
TASKS = "tasks"
PATTERNS = (
    STATE_FILE,
    "moments-*.safetensors",
    "tasks/*.safetensors",
    f"*{UNFINISHED}",
    f"tasks/*{UNFINISHED}",
)
"""The files of a state, but for its lock."""


class StateFolder:
    """A state on disk: its manifest, and the files that the manifest names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> StateManifest:
        """Return the manifest, after a look at the size of every file that it names."""
        manifest = StateManifest.read(self.path)
        problems = [problem for record in manifest.files if (problem := self._fault(record))]
        if problems and StateManifest.read(self.path) != manifest:  # a task was removed in the meantime
            return self.read()
        if problems:
            raise RequestError(problems)
        return manifest

    def _fault(self, record: FileRecord) -> Problem | None:
        path = self.path / record.file
        try:
            is_file, size = path.is_file(), path.stat().st_size
        except OSError as error:
            return Problem(f"cannot be read ({error.strerror})", str(path), DAMAGED)
        if not is_file:
            return Problem("is no file", str(path), DAMAGED)
        if size != record.bytes:
            return Problem(f"has {size} bytes, not {record.bytes}", str(path), DAMAGED)
        return None

    def entries(
        self, record: FileRecord, table: FileTable | None = None
    ) -> tuple[Mapping[str, TensorEntry], Mapping[str, str]]:
        """Return the tensors and the metadata of a file, whose digest is compared with the manifest's.

        With a `table` the file is open in it from then on, and is read whatever another process removes.
        """
        path = self.path / record.file
        try:
            digest = file_digest(path)
        except OSError as error:
            raise RequestError(self.unreadable(record, str(error.strerror))) from None
        if digest != record.digest:
            raise RequestError(Problem("its content is not what was written", str(path), DAMAGED))
        try:
            header = read_header(path)
            if table is not None:
                for entry in islice(header.entries.values(), 1):  # opens the file, if it has a tensor
                    table.source(entry)
        except SubmergeError as error:
            if path.exists():
                raise
            raise RequestError(self.unreadable(record, str(error))) from None
        return header.entries, header.metadata

    def unreadable(self, record: FileRecord, why: str) -> Problem:
        """Return why a file of the manifest cannot be read: another process may have changed the state."""
        path = self.path / record.file
        if not path.exists() and record not in StateManifest.read(self.path).files:
            what = f"was changed by another process, and has no {record.file} any more"
            return Problem(what, str(self.path), "run the command again")
        return Problem(f"cannot be read ({why})", str(path), DAMAGED)

    def check_apart(self, out: Path) -> None:
        """Raise `RequestError` where an output would take the place of the state, or of a part of it."""
        try:
            own, place = self.path.resolve(), out.resolve()
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle
            reason = getattr(error, "strerror", None) or error
            raise RequestError(
                Problem(f"cannot be looked at ({reason})", str(out), "choose another folder")
            ) from None
        if place in (own, own / TASKS, *own.parents):
            what = f"would take the place of the state {self.path}, or of a part of it"
            raise RequestError(Problem(what, str(out), "choose another folder"))

    @contextmanager
    def writing(self) -> Iterator[StateManifest]:
        """Give the manifest, with the right to change the state, after what a killed writer left is removed.

        Raises `RequestError` while another process has that right.
        """
        StateManifest.read(self.path)  # no lock is left in a folder that is no state
        with locked(self.path):
            manifest = self.read()
            try:
                self._remove_unnamed(manifest)
            except OSError as error:
                what = f"{error.filename}: cannot be removed ({error.strerror})"
                raise WorkError(f"{what} — choose a folder that you may write to") from error
            yield manifest

    def commit(self, manifest: StateManifest) -> None:
        """Make the state what a manifest says; every file that it names is on the disk.

        Files that it no longer names, as that of a task that is removed, are gone then.
        """
        path = self.path / STATE_FILE
        with writing(f"{path}: cannot be written", "free some space; the state is as it was"):
            for folder in {(self.path / record.file).parent for record in manifest.files}:
                sync_folder(folder)
            with whole_file(path, synced=True) as unfinished:
                unfinished.write_text(manifest.text, encoding="utf-8")
        sync_folder(self.path)
        with suppress(OSError):  # the change is made; else the next writer removes them
            self._remove_unnamed(manifest)

    def _remove_unnamed(self, manifest: StateManifest) -> None:
        named = {self.path / record.file for record in manifest.files}
        _remove_all_but(self.path, {*named, self.path / STATE_FILE})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. The system drops that of a process which has ended, however it ended."""
    path = folder / LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        hint = "choose a folder that you may write to"
        raise WorkError(f"{path}: cannot be opened ({error.strerror}) — {hint}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # any other: a file system without locks
                what = f"process {os.pread(fd, 20, 0).decode() or '?'} is changing this state"
                raise RequestError(Problem(what, str(folder), "wait until it is done")) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill with a state, which has the name `out` when it is complete, and else is removed.

    Raises `RequestError` where something that is not empty has that name.
    """
    out = out.resolve()
    unfinished = unfinished_folder(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RequestError(Problem("exists already", str(out), "choose another folder"))
    if not _is_ours(unfinished):
        what = "something of this name exists that no state was begun in"
        raise RequestError(Problem(what, str(unfinished), "remove it, or choose another name"))
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with locked(unfinished):
            try:
                _remove_all_but(unfinished, ())
                yield unfinished
                os.rename(unfinished, out)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        sync_folder(out.parent)
    except OSError as error:
        raise WorkError(f"{out}: cannot be made ({error.strerror}) — choose another folder") from error


def _is_ours(unfinished: Path) -> bool:
    """Return whether a state may be built in a folder: it is not there, or empty, or one was begun in it."""
    if not os.path.lexists(unfinished):
        return True
    return unfinished.is_dir() and ((unfinished / LOCK).exists() or not any(unfinished.iterdir()))


def _remove_all_but(folder: Path, named: Collection[Path]) -> None:
    """Remove the files of a state that are not named: those that a killed process left.

    What else lies in the folder, as an export that was put there, is the user's.
    """
    for pattern in PATTERNS:
        for path in folder.glob(pattern):
            if path not in named and (path.is_symlink() or not path.is_dir()):
                path.unlink(missing_ok=True)
