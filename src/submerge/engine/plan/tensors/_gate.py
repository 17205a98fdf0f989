"""What a gate adds to a plan: the tasks, their heads, and the settings of the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tensors._head_file import is_file, read_head_file
from submerge.errors import Problem, RequestError, few
from submerge.methods import Option
from submerge.recipe import ModelEntry, Recipe
from submerge.store import Checkpoint, GateRecord, TensorEntry

__all__ = ["GatePlan", "GateTask", "is_head", "plan_gate"]

HEAD_CONFIG = ("architectures", "id2label", "problem_type", "task_type")
"""What of a fine-tune's or an adapter's configuration its head is used by."""


@dataclass(frozen=True)
class GateTask:
    """One task: its name, its model's number, the tensors that are its own, and what its head is used by."""

    name: str
    model: int
    head: Mapping[str, TensorEntry]
    config: Mapping[str, Any]

    def described(self, label: str) -> dict[str, Any]:
        """Return what submerge.json says of the task."""
        return {"name": self.name, "model": label, "head": sorted(self.head), **self.config}


@dataclass(frozen=True)
class GatePlan:
    """The gate that is written beside the checkpoint: its tasks in the method's order, and its settings."""

    method: str = ""
    tasks: tuple[GateTask, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def record(self, models: Sequence[Checkpoint]) -> GateRecord:
        """Return what submerge.json says of the gate."""
        tasks = tuple(task.described(models[task.model].label) for task in self.tasks)
        return GateRecord(self.method, tasks, dict(self.settings))


def is_head(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns, parts of names or shell patterns, names this tensor."""
    return any(fnmatchcase(name, p) if any(c in p for c in "*?[") else p in name for p in patterns)


def plan_gate(recipe: Recipe, inputs: Inputs) -> tuple[GatePlan, list[Problem]]:
    """Return the gate of a method that has one, and what is wrong with its tasks and its settings."""
    tasks, problems = _tasks(recipe, inputs)
    settings, unfit = _settings(recipe, inputs.reference_model)
    return GatePlan(method=recipe.method.name, tasks=tasks, settings=settings), problems + unfit


def _tasks(recipe: Recipe, inputs: Inputs) -> tuple[tuple[GateTask, ...], list[Problem]]:
    """Return a task for each participant, and what is wrong with them."""
    entries = recipe.participants
    names, problems = _names(entries)
    tasks = []
    for name, entry, position in zip(names, entries, inputs.participants, strict=True):
        model = inputs.models[position]
        head, unfit = _head(recipe, entry, model, inputs.reference_model)
        problems += unfit
        tasks.append(GateTask(name=name, model=position, head=head, config=_config(model)))
    return tuple(tasks), problems + _without_head(entries, tasks)


def _names(entries: Sequence[ModelEntry]) -> tuple[list[str], list[Problem]]:
    """Return each task's name: the recipe's, else the last part of its model's path."""
    names = [entry.name or PurePath(entry.model.partition("@")[0]).name or entry.model for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    hint = "give each a 'name:'"
    return names, [Problem(f"two models would be called {few(twice)}", "models", hint)] if twice else []


def _head(
    recipe: Recipe, entry: ModelEntry, model: Checkpoint, base: Checkpoint
) -> tuple[Mapping[str, TensorEntry], list[Problem]]:
    """Return the tensors that are a task's own, and what is wrong with what the recipe says of them."""
    if any(map(is_file, entry.head)):
        return _head_of_file(recipe, entry, base)
    assert recipe.method.gate is not None  # what else has tasks
    if not recipe.method.gate.own_heads:
        return {}, []
    head = {
        name: tensor
        for name, tensor in model.tensors.items()
        if tensor.is_float and (_is_new(name, tensor, base) or is_head(name, entry.head))
    }
    missing = [p for p in entry.head if not any(is_head(name, [p]) for name in model.tensors)]
    if not missing:
        return head, []
    hint = f"its last tensors are {few(list(model.tensors)[-3:])}"
    return head, [Problem(f"no tensor of {model.label} is named by head: {few(missing)}", entry.where, hint)]


def _is_new(name: str, tensor: TensorEntry, base: Checkpoint) -> bool:
    """Return whether the base lacks a tensor, or has another shape of it, so that it has no update."""
    return name not in base.tensors or base.tensors[name].shape != tensor.shape


def _head_of_file(
    recipe: Recipe, entry: ModelEntry, base: Checkpoint
) -> tuple[Mapping[str, TensorEntry], list[Problem]]:
    """Return the head of an entry whose `head` names a file, and what is wrong with it."""
    if len(entry.head) > 1:
        hint = "name the file alone: it is the whole head"
        return {}, [Problem("head names a file, and something else", entry.where, hint)]
    return read_head_file(recipe.root / entry.head[0], base.tensors, entry.where)


def _without_head(entries: Sequence[ModelEntry], tasks: Sequence[GateTask]) -> list[Problem]:
    """Return that some tasks have no head where others have one: the model that is served has either.

    A task whose file could not be read has a problem already.
    """
    bare = [
        task.name
        for task, entry in zip(tasks, entries, strict=True)
        if not task.head and not any(map(is_file, entry.head))
    ]
    if not 0 < len(bare) < len(tasks):
        return []
    what = f"no head is found in {few(bare)}, and others have one"
    return [Problem(what, "models", "give their whole fine-tunes, or name the tensors with 'head:'")]


def _config(model: Checkpoint) -> dict[str, Any]:
    """Return what of a model's configuration its head is used by."""
    config = dict(model.config or {})
    if model.adapter is not None:  # the base's configuration says nothing of the adapter's head
        config = {"task_type": model.adapter.config.get("task_type")}
    return {key: config[key] for key in HEAD_CONFIG if config.get(key) is not None}


def _settings(recipe: Recipe, base: Checkpoint) -> tuple[dict[str, Any], list[Problem]]:
    """Return the gate's settings, those of scope `model` as lists with one a task, and what is wrong."""
    assert recipe.method.gate is not None
    own = [option for option in recipe.method.options if option.single and option.scope == "model"]
    shapes = {n: e.shape for n, e in base.tensors.items() if e.is_float}
    settings: dict[str, Any] = {}
    problems: list[Problem] = []
    try:
        settings = recipe.method.gate.settings(recipe.single_options, shapes, len(recipe.participants))
    except RequestError as error:
        problems = list(error.problems)
    each = {o.name: [_own(entry, recipe, o) for entry in recipe.participants] for o in own}
    return settings | each, problems


def _own(entry: ModelEntry, recipe: Recipe, option: Option) -> Any:
    """Return a model's value of an option, which is one for all its tensors."""
    setting = entry.parameters.get(option.name) or recipe.parameters.get(option.name)
    return setting.rules[0].value if setting else option.default
