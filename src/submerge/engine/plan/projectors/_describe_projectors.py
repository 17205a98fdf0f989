"""What a plan says of projectors whose outputs are mixed: whose they are, and by what they are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from submerge.engine.plan.projectors._projectors import ProjectorPlan
from submerge.errors import few
from submerge.recipe import ProjectorMix, Recipe, data_spec
from submerge.store import Checkpoint

__all__ = ["describe_projectors", "projector_facts"]


def describe_projectors(plan: ProjectorPlan, recipe: Recipe, models: Sequence[Checkpoint]) -> dict[str, Any]:
    """Return the projectors with their tasks, and where prototypes come from, as JSON-able data."""
    return {
        "groups": [
            {
                "tasks": [plan.tasks[task].name for task in group.tasks],
                "models": [models[model].label for model in group.models],
                "bytes": sum(models[group.models[0]].tensors[name].nbytes for name in plan.names),
            }
            for group in plan.groups
        ],
        "prototypes": plan.count,
        "score": _score(plan, recipe),
        "from": _origins(plan, recipe),
    }


def _origins(plan: ProjectorPlan, recipe: Recipe) -> dict[str, str]:
    """Return for each task the file of its prototypes, or the data that they will be made of."""
    if plan.prototypes:
        return {task.name: str(file.path) for task, file in zip(plan.tasks, plan.prototypes, strict=True)}
    data = [data_spec(entry.data).path for entry in recipe.tasks if entry.data is not None]
    return {task.name: path for task, path in zip(plan.tasks, data, strict=True)}


def _score(plan: ProjectorPlan, recipe: Recipe) -> str:
    """Return by what tasks are told apart, in words; before there are prototypes what may still change."""
    settings, mix = plan.settings, recipe.projectors
    compared = {"image": "images", "text": "questions", "both": "images and questions"}[settings.key]
    open_key = isinstance(mix, ProjectorMix) and mix.options["key"] is None and not plan.prototypes
    more = ", and of questions where images of two tasks overlap" if open_key else ""
    return f"{settings.score} of {compared}{more}"


def projector_facts(plan: ProjectorPlan, recipe: Recipe) -> list[tuple[str, str]]:
    """Return a line for the projectors, one for their prototypes, and one for how they are compared."""
    groups = [" and ".join(plan.tasks[task].name for task in group.tasks) for group in plan.groups]
    made = f"made before the merge, from data of {len(plan.tasks)} models"
    read = f"from {recipe.prototypes.named or recipe.prototypes.path}" if recipe.prototypes else made
    return [
        ("projectors", f"mixed for each image, one a task: {few(groups, 8)}"),
        ("prototypes", read),
        ("score", _score(plan, recipe)),
    ]
