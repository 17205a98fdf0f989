"""`state.json`: what a state is of, how its tasks are merged, and which files hold them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from shlex import quote
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from submerge._version import __version__
from submerge.algebra import LpmOptions
from submerge.errors import Problem, RequestError, did_you_mean
from submerge.store import read_json

__all__ = [
    "STATE_FILE",
    "TASK_NAME",
    "BaseRecord",
    "FileRecord",
    "ProjectorRecord",
    "StateManifest",
    "StateOptions",
    "TaskRecord",
]

STATE_FILE = "state.json"
FORMAT = "submerge.continual"
VERSIONS = (1, 2, 3, 4)
"""Of what the files hold. A state of another version is refused: nothing of it is guessed.

Version 2 has projectors and prototypes, version 3 tasks that are whole checkpoints, version 4 packed factors
and `block` statistics. A state is written in the first version that can say what it holds, to the same bytes
as before there was a later one, so that earlier versions of Submerge read it.
"""

TASK_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
"""What a task may be called."""

_FILE = re.compile(r"(tasks/[A-Za-z0-9][\w.-]*|moments-\w+)\.safetensors", re.ASCII)
"""What a file of a state is called: none lies outside of its folder, whoever wrote the manifest."""

DAMAGED = "restore the folder from a copy, or begin a new state"

Record = TypeVar("Record")


@dataclass(frozen=True)
class BaseRecord:
    """The base of all tasks: its folder, or its name and commit on the Hub; and a digest of it."""

    model: str
    revision: str | None
    digest: str

    @property
    def spec(self) -> str:
        """What opens the base as it was when the state was begun."""
        return f"{self.model}@{self.revision}" if self.revision else self.model


@dataclass(frozen=True)
class FileRecord:
    """A file of the state: its path in the folder, its size in bytes, and the digest of its content."""

    file: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class ProjectorRecord:
    """What a task's file has of a projector, by which the outputs of projectors are mixed.

    Attributes:
        bytes: of the task's own projector; 0 where that is the base's.
        images: the inputs of the projector that the prototypes are means of.
        prototypes: how many there are.
        group: the first of the tasks that share one projector, which is the mean of theirs.
        nearest: the other group with whose images the task's overlapped most when it was added; empty where
            none did.
        overlap: how much they did, 0 to 1: as a discriminant sees it, or without statistics of all tasks the
            share of its images that were as near to the other's prototypes.
    """

    bytes: int
    images: int
    prototypes: int
    group: str
    nearest: str = ""
    overlap: float = 0.0


@dataclass(frozen=True)
class TaskRecord(FileRecord):
    """A task: its name, and what its file was made of.

    Attributes:
        rank: the largest rank of its updates; 0 of a whole checkpoint.
        maps: how many linear maps it changes.
        rows: of inputs that were counted: tokens that are no padding.
        samples: the inputs that these are tokens of.
        adapter: the digest of the files of its adapter and of its scales, or of the files of its checkpoint.
        data: the digest of the encoded inputs; empty where no inputs were needed.
        moment_bytes: what of its file serves removal alone: the second moments.
        projector: of a task with images, whose base has a projector.
        weight_bytes: what of its file are weights of a whole checkpoint; 0 of an adapter.
        others: how many of these tensors are no linear maps: they are merged as a mean.
        packed: whether its factors are packed, as `_packed` has it.
    """

    name: str
    rank: int
    maps: int
    rows: int
    samples: int
    adapter: str
    data: str
    moment_bytes: int
    projector: ProjectorRecord | None = None
    weight_bytes: int = 0
    others: int = 0
    packed: bool = False


@dataclass(frozen=True)
class StateOptions:
    """What is measured and kept of every task of a state; it does not change once the state is begun.

    Attributes:
        statistics: of the inputs of each linear map: `full` second moments, their diagonal `block`s of at
            most 256 inputs, their `diag`onal, `lowrank` ones that hold 99.9 % of the trace, or none
            (`identity`: a mean of the updates, which needs no data).
        keep: `full` keeps each task's moments, so that removal is exact and needs nothing; `none` keeps their
            sum alone, so that removal needs the task's adapter and data again.
        pooling: an image is compared by the `mean` of its positions, or by all of them (`position`).
    """

    statistics: Literal["full", "block", "diag", "lowrank", "identity"] = "full"
    keep: Literal["full", "none"] = "full"
    pooling: Literal["mean", "position"] = "mean"

    @property
    def keeps_moments(self) -> bool:
        """Whether each task's moments are kept, and not their sum alone."""
        return self.keep == "full"


@dataclass(frozen=True)
class StateManifest:
    """All that `state.json` says; tasks are in the order in which they were added."""

    base: BaseRecord
    options: StateOptions
    lpm: LpmOptions
    tasks: tuple[TaskRecord, ...] = ()
    running: FileRecord | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """All files that the state consists of, besides this one."""
        return (*self.tasks, *([self.running] if self.running else []))

    def task(self, name: str, option: str = "--task") -> TaskRecord:
        """Return a task by its name, which an option says; raise `RequestError` where there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        hint = did_you_mean(name, self.names, None if self.names else "there are no tasks")
        raise RequestError(Problem(f"there is no task {name!r}", option, hint))

    def with_task(self, task: TaskRecord, running: FileRecord | None) -> StateManifest:
        return replace(self, tasks=(*self.tasks, task), running=running)

    def without_task(self, name: str, running: FileRecord | None) -> StateManifest:
        tasks = tuple(task for task in self.tasks if task.name != name)
        return replace(self, tasks=_regrouped(tasks, name), running=running if tasks else None)

    @property
    def groups(self) -> dict[str, tuple[TaskRecord, ...]]:
        """The tasks with prototypes, by the projector that they have: each group by its first task."""
        groups: dict[str, tuple[TaskRecord, ...]] = {}
        for task in self.tasks:
            if task.projector is not None:
                groups[task.projector.group] = (*groups.get(task.projector.group, ()), task)
        return groups

    @property
    def has_projectors(self) -> bool:
        """Whether a task has another projector than the base."""
        return any(task.projector and task.projector.bytes for task in self.tasks)

    @property
    def has_checkpoints(self) -> bool:
        """Whether a task is a whole checkpoint, and no adapter."""
        return any(task.weight_bytes for task in self.tasks)

    @property
    def version(self) -> int:
        """The first version that can say what the state holds."""
        if self.options.statistics == "block" or any(task.packed for task in self.tasks):
            return 4
        if self.has_checkpoints:
            return 3
        return 2 if self.groups or self.options.pooling != "mean" else 1

    @property
    def text(self) -> str:
        """The file's content: the same for the same state."""
        head = {"format": FORMAT, "version": self.version, "submerge": __version__}
        content = asdict(self)
        later = ["packed"] if self.version < 4 else []
        later += ["weight_bytes", "others"] if self.version < 3 else []
        if self.version == 1:
            del content["options"]["pooling"]
            later.append("projector")
        for task in content["tasks"]:
            for key in later:
                del task[key]
        return json.dumps({**head, **content}, indent=1, ensure_ascii=False) + "\n"

    def _check(self) -> None:
        """Raise `ValueError` for names that no state has, of tasks or of files that lie elsewhere.

        And for a sum of moments beside tasks that keep them, or none where they do not.
        """
        wrong = [name for name in self.names if not TASK_NAME.fullmatch(name)]
        wrong += [record.file for record in self.files if not _FILE.fullmatch(record.file)]
        wrong += [name for name in set(self.names) if self.names.count(name) > 1]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no name, or there twice")
        if lost := [name for name in self.groups if name not in self.names]:
            raise ValueError(f"group is {lost[0]!r}, which is no task")
        if (self.running is not None) != (not self.options.keeps_moments and bool(self.tasks)):
            raise ValueError(f"keep is {self.options.keep!r}, and running is {self.running!r}")

    @classmethod
    def read(cls, folder: Path) -> StateManifest:
        """Return the manifest of a state; raise `RequestError` where there is none, or it is damaged."""
        path = folder / STATE_FILE
        if not path.is_file():
            raise RequestError(_no_state(folder))
        content = read_json(path, DAMAGED)
        if content.get("format") != FORMAT or content.get("version") not in VERSIONS:
            raise RequestError(_other_format(content, path))
        try:
            running, tasks = content["running"], content["tasks"]
            if not isinstance(tasks, list):
                raise ValueError(f"tasks is {tasks!r}")
            manifest = cls(
                _record(BaseRecord, content["base"]),
                _record(StateOptions, content["options"]),
                _lpm(content["lpm"]),
                tuple(map(_task, tasks)),
                None if running is None else _record(FileRecord, running),
            )
            manifest._check()
            return manifest
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RequestError(Problem(f"is damaged ({error!r})", str(path), DAMAGED)) from None


def _no_state(folder: Path) -> Problem:
    """Return that a folder has no manifest: it never was a state, or has lost it."""
    path = folder / STATE_FILE
    if os.path.lexists(path):
        return Problem("is no file", str(path), DAMAGED)
    lost = folder.is_dir() and any(_FILE.fullmatch(f"tasks/{p.name}") for p in folder.glob("tasks/*"))
    hint = DAMAGED if lost else f"begin one: submerge many init BASE -o {quote(str(folder))}"
    return Problem("is no state: it has no state.json", str(folder), hint)


def _lpm(content: Mapping[str, Any]) -> LpmOptions:
    """Return the options of the merge; raise `ValueError` where one is not said: none is guessed."""
    if missing := {option.name for option in fields(LpmOptions)} - content.keys():
        raise ValueError(f"{min(missing)} is not said")
    return LpmOptions(**content)


def _other_format(content: Mapping[str, Any], path: Path) -> Problem:
    """Return that a manifest is none that this version reads, and who reads it."""
    version = content.get("version")
    what = f"is of format {content.get('format')!r}, version {version!r}"
    hint = f"this Submerge, {__version__}, reads {FORMAT}, versions {VERSIONS[0]} to {VERSIONS[-1]}"
    if content.get("format") == FORMAT and isinstance(version, int) and version > VERSIONS[-1]:
        hint += f"; Submerge {content.get('submerge')} wrote it: install that one, or a later one"
    return Problem(what, str(path), hint)


def _regrouped(tasks: Sequence[TaskRecord], removed: str) -> tuple[TaskRecord, ...]:
    """Return tasks of whose groups none has the name of a task that was removed, nor says anything of it."""
    first: dict[str, str] = {}
    result = []
    for task in tasks:
        own = task.projector
        if own is not None:
            if own.nearest == removed:
                own = replace(own, nearest="", overlap=0.0)
            own = replace(own, group=first.setdefault(own.group, task.name))
        result.append(replace(task, projector=own))
    return tuple(result)


def _task(content: Mapping[str, Any]) -> TaskRecord:
    own = content.get("projector")
    projector = None if own is None else _record(ProjectorRecord, own)
    return _record(TaskRecord, {**content, "projector": projector})


def _record(kind: type[Record], content: Mapping[str, Any]) -> Record:
    """Return a dataclass of a JSON object that has its fields; raise `ValueError` or `TypeError` if not."""
    record = kind(**content)
    types = get_type_hints(kind)
    for field_ in fields(kind):  # type: ignore[arg-type]
        value, wanted = getattr(record, field_.name), types[field_.name]
        if not _is_of(value, wanted):
            raise ValueError(f"{field_.name} is {value!r}")
    return record


def _is_of(value: Any, wanted: Any) -> bool:
    """Return whether a value of JSON is of the type of a record's field; records in records are their own."""
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if wanted is float:
        return type(value) in (int, float) and math.isfinite(value)
    if wanted == str | None:
        return value is None or type(value) is str
    return wanted not in (str, int, bool) or type(value) is wanted
