"""Two states of one base as one: what two workers added, as if one had."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from submerge.continual._manifest import FileRecord, StateManifest, TaskRecord
from submerge.continual._running import RunningSum
from submerge.continual._state_folder import StateFolder, new_folder
from submerge.continual._tensor_file import free_path
from submerge.errors import Problem, RequestError, WorkError, few
from submerge.store import sync_file

__all__ = ["join_states"]

Record = TypeVar("Record", bound=FileRecord)


def join_states(first: StateFolder, second: StateFolder, out: Path) -> None:
    """Write a state that has the tasks of both.

    Raises `RequestError` where the states are of two bases, were begun with other options, or have a task
    of one name.
    """
    one, other = first.read(), second.read()
    if problems := _refusals(first, one, second, other):
        raise RequestError(problems)
    with new_folder(out) as path:
        (path / "tasks").mkdir(exist_ok=True)
        tasks = tuple(
            _copied(folder, record, path)
            for folder, manifest in ((first, one), (second, other))
            for record in manifest.tasks
        )
        running = _sum(first, one, second, other, path)
        joined = StateManifest(one.base, one.options, one.lpm, tasks, running)
        StateFolder(path).commit(joined)


def _refusals(
    first: StateFolder, one: StateManifest, second: StateFolder, other: StateManifest
) -> list[Problem]:
    """Return why two states are not of one kind."""
    problems = []
    where = f"{first.path} and {second.path}"
    if one.base.digest != other.base.digest:
        what = f"are of two bases, {one.base.model} and {other.base.model}"
        problems.append(Problem(what, where, "join states of one base"))
    if differing := _differing(one, other):
        what = f"were begun with other options: {few(differing)}"
        problems.append(Problem(what, where, "begin both alike: submerge many init"))
    if both := sorted(set(one.names) & set(other.names)):
        hint = "remove it from one of them, or add it there under another name"
        problems.append(Problem(f"both have a task {', '.join(both)}", where, hint))
    return problems


def _differing(one: StateManifest, other: StateManifest) -> list[str]:
    """Return the options that two states were begun with, where they differ."""
    first, second = ({**asdict(state.options), **asdict(state.lpm)} for state in (one, other))
    return [f"{name} {first[name]} and {second[name]}" for name in first if first[name] != second[name]]


def _copied(folder: StateFolder, record: Record, path: Path) -> Record:
    """Copy a file of a state, whose content is what its manifest says, and return its record.

    A task's file of an earlier version may have the name of another one but for its case: it gets another.
    """
    folder.entries(record)
    target = path / record.file
    if isinstance(record, TaskRecord) and target.name.lower() in _names(target.parent):
        target = free_path(path, f"tasks/{record.name}", record.digest)
    source = folder.path / record.file
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if not source.exists():
            raise RequestError(folder.unreadable(record, str(error.strerror))) from None
        raise WorkError(f"{target}: cannot be written ({error.strerror}) — free some space") from error
    sync_file(target)
    return replace(record, file=str(target.relative_to(path)))


def _names(folder: Path) -> set[str]:
    """Return the names of files in lower case."""
    return {path.name.lower() for path in folder.iterdir()}


def _sum(
    first: StateFolder, one: StateManifest, second: StateFolder, other: StateManifest, path: Path
) -> FileRecord | None:
    """Write the sum of two states' sums, where they keep no moments, and return its file."""
    if one.options.keeps_moments:
        return None
    if not one.tasks or not other.tasks:
        folder, record = (first, one.running) if one.tasks else (second, other.running)
        return None if record is None else _copied(folder, record, path)
    with RunningSum(first, one.running, path) as running, RunningSum(second, other.running, path) as added:
        added.check_inputs(running.inputs, f"a task of {first.path}")
        for name in sorted(set(running.inputs.values())):
            running.put(name, [running.sum(name), added.sum(name)])
        return running.finish()
