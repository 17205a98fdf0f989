"""The step before a merge that mixes projectors: prototypes of what these are given on each task's images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from submerge.deferred import torch
from submerge.engine._calibrate import replanned
from submerge.engine._described_data import described_data
from submerge.engine.output import check_unfinished, unfinished_folder
from submerge.engine.plan import MergePlan, ProjectorPlan, stored_digest
from submerge.errors import Problem, RequestError
from submerge.names import projector_of
from submerge.recipe import DataSource, ProjectorMix, TaskFolder
from submerge.store import PrototypeFile, file_digest, write_prototypes

if TYPE_CHECKING:
    from submerge.calibrate import Item, Pooling, Step, TaskPrototypes

__all__ = ["with_prototypes"]

SUFFIX = ".prototypes"
SIZES = {"batch_size": 16, "max_length": 512}
"""Inputs in a pass and tokens of a text, where the method has no options for them."""


def with_prototypes(
    plan: MergePlan, out: Path, *, resume: bool, progress: Callable[[Step], None] | None
) -> MergePlan:
    """Return the plan of a merge that mixes projectors by the prototypes that its recipe's data gives.

    They are in the folder `OUT.prototypes`, a file for each task, which another recipe can name. With
    `resume` a file that was made of the same base and the same data is taken as it is. The base alone runs,
    up to its projector: encoder and processor are those of all tasks.
    """
    check_unfinished(unfinished_folder(out))
    assert plan.projectors is not None
    folder = TaskFolder(out.resolve().with_name(out.name + SUFFIX))
    tasks = _tasks(plan, plan.projectors, folder)
    pending = [task for task in tasks if not (resume and task.is_made())]
    if pending:
        _make(plan, plan.projectors, pending, progress)
    return replanned(plan, replace(plan.recipe, prototypes=folder))


@dataclass(frozen=True)
class _Task:
    """A task whose inputs are looked at: its name, its data, the file, and what the file is made of."""

    name: str
    data: DataSource
    path: Path
    source: Mapping[str, Any]

    def is_made(self) -> bool:
        """Return whether the file was made of the same, as it says."""
        return self.path.exists() and PrototypeFile.open(self.path).source == self.source


def _tasks(plan: MergePlan, projectors: ProjectorPlan, folder: TaskFolder) -> list[_Task]:
    """Return the tasks of a merge; raise `RequestError` where a file in the place of theirs is another."""
    settings, mix = projectors.settings, plan.recipe.projectors
    assert isinstance(mix, ProjectorMix)
    shared = {
        "base": [file_digest(file) for file in plan.inputs.reference_model.files],
        "model_digest": stored_digest(plan.inputs.reference_model),
        "module": settings.module,
        "pooling": settings.pooling,
        "prototypes": projectors.count,
        "text": mix.options["key"] != "image",  # else they count where images tell too little
        "statistics": True,
        **_sizes(plan),
    }
    tasks = []
    for entry in plan.recipe.tasks:
        path = folder.file(entry.adapter_name)
        if path.exists():
            PrototypeFile.open(path)  # what is no file of prototypes is not replaced
        assert entry.data is not None  # the recipe was checked
        source = json.loads(json.dumps(shared | {"data": described_data(entry.data)}))
        tasks.append(_Task(entry.adapter_name, entry.data, path, source))
    return tasks


def _sizes(plan: MergePlan) -> dict[str, int]:
    """Return how many inputs are in a pass, and how many tokens a text has at most."""
    recipe = plan.recipe
    return {n: recipe.single_option(n) if recipe.method.option(n) else size for n, size in SIZES.items()}


def _make(
    plan: MergePlan,
    projectors: ProjectorPlan,
    tasks: list[_Task],
    progress: Callable[[Step], None] | None,
) -> None:
    """Write the prototypes of tasks, one after the other."""
    from submerge.calibrate import Step, load_backbone, read_data, read_items, task_prototypes  # transformers

    items = {task.name: read_items(task.data) for task in tasks}
    for task in tasks:
        _check_images(task, items[task.name][0])
    pooling = cast("Pooling", projectors.settings.pooling)
    model = load_backbone(plan.inputs.reference_model.path).to(plan.settings.device).eval()
    inputs = read_data(items, (), model, processor=None, **_sizes(plan))
    module = projector_of({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    assert module is not None  # the plan found it in the base
    done, total = count(1), sum(len(inputs[task.name]) for task in tasks)

    def tell(_: int) -> None:
        if progress is not None:
            progress(Step(next(done), total, measuring=True, what="prototypes of images"))

    for task in tasks:
        made = task_prototypes(
            model,
            inputs[task.name],
            module,
            pooling=pooling,
            count=projectors.count,
            text=task.source["text"],
            progress=tell,
        )
        if not made.images.isfinite().all():
            what = f"the encoder gives NaN or Inf on images of {task.name}"
            raise RequestError(Problem(what, plan.inputs.reference_model.label, "look at its weights"))
        write_prototypes(task.path, _tensors(made), made.count, task.source)


def _tensors(made: TaskPrototypes) -> dict[str, torch.Tensor]:
    """Return what a file of prototypes holds."""
    tensors = {"images": made.images} | ({} if made.text is None else {"text": made.text})
    for name, statistics in (("images", made.image_statistics), ("text", made.text_statistics)):
        tensors |= {} if statistics is None else statistics.tensors(name)
    return tensors


def _check_images(task: _Task, first: Item) -> None:
    """Raise `RequestError` where a task's data has no images, or no texts with them; all are of one kind."""
    if first.kind != "images with texts":
        what = f"there are {first.kind}, and projectors are mixed by images"
        hint = "give images with their questions, or write 'projectors: merged'"
        raise RequestError(Problem(what, f"data of {task.name}", hint))
