"""Projectors whose outputs are mixed: which tasks have which, and by which prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.projectors._projector_changes import ProjectorChanges, projector_changes
from submerge.engine.plan.projectors._projector_score import ProjectorScore, TaskStatistics, choose_score
from submerge.engine.plan.projectors._prototypes import open_prototypes, unchecked_base
from submerge.errors import Problem, RequestError, few
from submerge.names import MultimodalParts, multimodal_parts
from submerge.recipe import ModelEntry, ProjectorMix, Recipe
from submerge.store import PROJECTOR_GATE, Checkpoint, GateRecord, ProjectorSettings, PrototypeFile

__all__ = ["ProjectorGroup", "ProjectorPlan", "ProjectorTask", "plan_projectors"]


@dataclass(frozen=True)
class ProjectorTask:
    """A task: its name, the position of its model, and the number of its projector."""

    name: str
    model: int
    group: int


@dataclass(frozen=True)
class ProjectorGroup:
    """A projector: the numbers of the tasks that share it, and the positions of the models that it is of.

    Of several it is the mean. Models that have not changed the projector are none of them, unless no task
    of the group has: then one of them stands for the base.
    """

    tasks: tuple[int, ...]
    models: tuple[int, ...]


@dataclass(frozen=True)
class ProjectorPlan:
    """The projectors of a merge, and how their outputs are mixed.

    Attributes:
        parts: where the base has its encoders and its projector.
        names: the tensors of the projector, by the base's names.
        tasks: in the order of the recipe.
        groups: the projectors, in the order of their first task.
        settings: of the gate.
        count: the most prototypes that a task has.
        prototypes: of each task; empty while they are still to be made of its data.
        warnings: what deserves a look.
    """

    parts: MultimodalParts
    names: tuple[str, ...]
    tasks: tuple[ProjectorTask, ...]
    groups: tuple[ProjectorGroup, ...]
    settings: ProjectorSettings
    count: int
    prototypes: tuple[PrototypeFile, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def statistics(self) -> list[list[TaskStatistics]]:
        """The statistics of each group's tasks, as the files of prototypes have them."""
        own = [_statistics(task, file) for task, file in zip(self.tasks, self.prototypes, strict=True)]
        return [[own[k] for k in group.tasks] for group in self.groups]

    def record(self, models: Sequence[Checkpoint]) -> GateRecord:
        """Return what submerge.json says of the gate."""
        tasks = tuple(
            {"name": task.name, "model": models[task.model].label, "group": task.group} for task in self.tasks
        )
        return GateRecord(PROJECTOR_GATE, tasks, self.settings.to_mapping())


def plan_projectors(recipe: Recipe, inputs: Inputs) -> tuple[Recipe, ProjectorPlan | None, list[str]]:
    """Return the recipe as it says what becomes of projectors, those that are mixed, and warnings.

    `inputs` are the models under the base's names. Without a word of the recipe projectors are mixed by a
    method that does so, where several models have one of their own, all data for prototypes, and the base's
    encoder. Raises `RequestError` with all that is wrong.
    """
    asked = isinstance(recipe.projectors, ProjectorMix)
    by_default = recipe.projectors is None and recipe.method.mixes_projectors and not recipe.composed
    if inputs.base is None or not (asked or by_default):
        return recipe, None, []
    base = inputs.models[inputs.base]
    parts = multimodal_parts(base.shapes)
    if parts is None:
        if asked:
            what = "it has no projector: no module between an encoder and a language model"
            raise RequestError(Problem(what, base.label, "give a model such as a Llava as base_model"))
        return recipe, None, []
    models = {inputs.specs.index(entry.model): entry for entry in recipe.tasks}
    changes = projector_changes(base, {i: inputs.models[i] for i in models}, parts)
    if by_default:
        if len(changes.projector) < 2:
            return recipe, None, []
        if why := _why_merged(recipe, changes):
            what = f"the projectors of {len(changes.projector)} models are merged into one, which may read no"
            return recipe, None, [f"{what} task's images, for {why} ('projectors: mixed' keeps each)"]
        recipe = replace(recipe, projectors=ProjectorMix())
    plan = _planned(recipe, inputs, parts, changes)
    return recipe, plan, list(plan.warnings)


def _why_merged(recipe: Recipe, changes: ProjectorChanges) -> str:
    """Return why projectors are not mixed by default; empty where they are."""
    if recipe.output.form == "adapter":
        return "an adapter has no place for several"
    if any(entry.data is None for entry in recipe.tasks):
        return "there is no data for prototypes"
    return "their encoders differ" if changes.encoder else ""


def _planned(
    recipe: Recipe, inputs: Inputs, parts: MultimodalParts, changes: ProjectorChanges
) -> ProjectorPlan:
    """Return the plan of projectors that are mixed; raise `RequestError` with all that is wrong."""
    mix = recipe.projectors
    assert isinstance(mix, ProjectorMix)
    problems = [*changes.problems(inputs)]
    if not changes.projector:
        what = "no model changes the projector, so that there is nothing to mix"
        problems.append(Problem(what, "projectors", "write 'projectors: merged'"))
    owners, circle = _owners(recipe.tasks)
    problems += circle
    if len(set(owners)) == 1 and not circle:
        what = "all tasks share one projector, so that there is nothing to mix"
        hint = "leave share_projector out of an entry; or out of all, and write 'projectors: merged'"
        problems.append(Problem(what, "projectors", hint))
    prototypes, unfit = open_prototypes(recipe, mix, inputs.reference_model)
    if problems := [*problems, *unfit]:
        raise RequestError(problems)
    positions = [inputs.specs.index(entry.model) for entry in recipe.tasks]
    numbers = {owner: k for k, owner in enumerate(dict.fromkeys(owners))}
    tasks = tuple(
        ProjectorTask(entry.adapter_name, position, numbers[owner])
        for entry, position, owner in zip(recipe.tasks, positions, owners, strict=True)
    )
    groups = tuple(_group(owners, owner, positions, changes) for owner in numbers)
    base = inputs.reference_model.tensors
    chosen = _score(mix, tasks, prototypes)
    return ProjectorPlan(
        parts=parts,
        names=tuple(filter(parts.in_projector, base)),
        tasks=tasks,
        groups=groups,
        settings=mix.settings(parts.projector, chosen.score, chosen.key),
        count=mix.prototypes,
        prototypes=prototypes,
        warnings=(*unchecked_base(prototypes), *_averaged(tasks, groups), *chosen.warnings),
    )


def _score(
    mix: ProjectorMix, tasks: Sequence[ProjectorTask], prototypes: Sequence[PrototypeFile]
) -> ProjectorScore:
    """Return by what tasks are told apart; before there are prototypes, what that will be if it can."""
    score, key = mix.options["score"], mix.options["key"]
    if not prototypes:
        usual = "discriminant" if mix.options["pooling"] == "mean" else "prototypes"
        return ProjectorScore(score or usual, key or "image")
    statistics = [_statistics(task, file) for task, file in zip(tasks, prototypes, strict=True)]
    return choose_score(statistics, score, key)


def _statistics(task: ProjectorTask, file: PrototypeFile) -> TaskStatistics:
    return TaskStatistics(task.name, task.group, file.statistics("images"), file.statistics("text"))


def _group(
    owners: Sequence[int], owner: int, positions: Sequence[int], changes: ProjectorChanges
) -> ProjectorGroup:
    """Return the projector that tasks share with an `owner`."""
    tasks = tuple(task for task, own in enumerate(owners) if own == owner)
    models = dict.fromkeys(positions[task] for task in tasks if positions[task] in changes.projector)
    return ProjectorGroup(tasks, tuple(models) or (positions[owner],))


def _owners(tasks: Sequence[ModelEntry]) -> tuple[list[int], list[Problem]]:
    """Return for each task the number of the one that its projector is of."""
    numbers = {entry.adapter_name: number for number, entry in enumerate(tasks)}
    owners, problems = [], []
    for number, entry in enumerate(tasks):
        seen = [number]
        while (name := tasks[seen[-1]].share_projector) and numbers[name] not in seen:
            seen.append(numbers[name])
        if name:
            what = f"share_projector of {few([tasks[k].adapter_name for k in seen])} goes in a circle"
            problems.append(Problem(what, entry.where, "one of them has its own"))
        owners.append(seen[-1])
    return owners, problems[:1]


def _averaged(tasks: Sequence[ProjectorTask], groups: Sequence[ProjectorGroup]) -> list[str]:
    """Return which tasks share a projector that is the mean of several."""
    names = [[tasks[task].name for task in group.tasks] for group in groups if len(group.models) > 1]
    what = "share one projector, and have several: their mean may read the images of none"
    return [f"{few(of_group)} {what}" for of_group in names]
