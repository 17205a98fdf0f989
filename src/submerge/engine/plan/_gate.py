"""What a kept gate adds to a plan: the tasks, their heads, and the settings of the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from submerge.engine.plan._head_file import is_file, read_head_file
from submerge.errors import Problem, RequestError, few
from submerge.recipe import ModelEntry, Recipe
from submerge.store import DTYPES, Checkpoint, GateRecord, TensorEntry

__all__ = ["GatePlan", "Task", "is_head", "plan_gate"]

TOLD = ("architectures", "id2label", "problem_type")
"""What of a fine-tune's configuration its head is used by."""


@dataclass(frozen=True)
class Task:
    """One task: its name, its model, the tensors that are its own, and what is told of its head."""

    name: str
    model: int
    head: Mapping[str, TensorEntry]
    config: Mapping[str, Any]

    def described(self, label: str) -> dict[str, Any]:
        """Return what submerge.json says of the task."""
        return {"name": self.name, "model": label, "head": sorted(self.head), **self.config}


@dataclass(frozen=True)
class GatePlan:
    """The gate that the output keeps: its tasks in the method's order, and its settings."""

    method: str = ""
    tasks: tuple[Task, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def record(self, models: Sequence[Checkpoint]) -> GateRecord:
        """Return what submerge.json says of the gate."""
        tasks = tuple(task.described(models[task.model].label) for task in self.tasks)
        return GateRecord(self.method, tasks, dict(self.settings))


def is_head(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns, parts of names or shell patterns, names this tensor."""
    return any(fnmatchcase(name, p) if any(c in p for c in "*?[") else p in name for p in patterns)


def plan_gate(
    recipe: Recipe, models: Sequence[Checkpoint], donor: int, participants: Sequence[int]
) -> tuple[GatePlan, list[Problem]]:
    """Return the gate of a method that keeps one, and what is wrong with tasks and settings."""
    base = models[donor]
    names, problems = _names(recipe.participants)
    tasks = []
    for name, entry, index in zip(names, recipe.participants, participants, strict=True):
        model = models[index]
        if any(map(is_file, entry.head)):
            head, found = _of_file(recipe, entry, base)
            problems += found
            tasks.append(Task(name, index, head, _told(model)))
            continue
        head = {
            n: e
            for n, e in model.tensors.items()
            if DTYPES[e.dtype].kind == "float"
            and (n not in base.tensors or base.tensors[n].shape != e.shape or is_head(n, entry.head))
        }
        if missing := [p for p in entry.head if not any(is_head(n, [p]) for n in model.tensors)]:
            hint = f"its last tensors are {few(list(model.tensors)[-3:])}"
            problems.append(
                Problem(f"no tensor of {model.label} is named by head: {few(missing)}", entry.where, hint)
            )
        tasks.append(Task(name, index, head, _told(model)))
    bare = [
        task.name
        for task, entry in zip(tasks, recipe.participants, strict=True)
        if not task.head and not any(map(is_file, entry.head))
    ]
    if bare and len(bare) < len(tasks):
        what = f"no head is found in {few(bare)}, and others have one"
        problems.append(
            Problem(what, "models", "give their whole fine-tunes, or name the tensors with 'head:'")
        )
    given = {
        option.name: setting.rules[0].value
        for option in recipe.method.options
        if option.single and option.scope == "shared" and (setting := recipe.parameters.get(option.name))
    }
    settings: dict[str, Any] = {}
    assert recipe.method.settings is not None  # what else is kept
    shapes = {n: e.shape for n, e in base.tensors.items() if DTYPES[e.dtype].kind == "float"}
    try:
        settings = recipe.method.settings(given, shapes, len(tasks))
    except RequestError as error:
        problems += error.problems
    for option in recipe.method.options:
        if option.single and option.scope == "model":
            settings[option.name] = [
                _own(entry, recipe, option.name, option.default) for entry in recipe.participants
            ]
    return GatePlan(recipe.method.name, tuple(tasks), settings), problems


def _of_file(
    recipe: Recipe, entry: ModelEntry, base: Checkpoint
) -> tuple[Mapping[str, TensorEntry], list[Problem]]:
    """Return the head of an entry whose `head` names a file, and what is wrong with it."""
    if len(entry.head) > 1:
        hint = "name the file alone: it is the whole head"
        return {}, [Problem("head names a file, and something else", entry.where, hint)]
    return read_head_file(recipe.root / entry.head[0], base.tensors, entry.where)


def _own(entry: ModelEntry, recipe: Recipe, option: str, default: Any) -> Any:
    setting = entry.parameters.get(option) or recipe.parameters.get(option)
    return setting.rules[0].value if setting else default


def _names(entries: Sequence[ModelEntry]) -> tuple[list[str], list[Problem]]:
    """Return each task's name: the recipe's, else the last part of its model's path."""
    names = [entry.name or PurePath(entry.model.partition("@")[0]).name or entry.model for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    hint = "give each a 'name:'"
    return names, [Problem(f"two models would be called {few(twice)}", "models", hint)] if twice else []


def _told(model: Checkpoint) -> dict[str, Any]:
    config = dict(model.config or {})
    if model.adapter is not None:  # the base's configuration says nothing of the adapter's head
        config = {"task_type": model.adapter.config.get("task_type")}
    return {key: config[key] for key in (*TOLD, "task_type") if config.get(key) is not None}
