"""The step before a merge by second moments: the passes over each model's data, and the files they fill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submerge.engine._calibrate import replanned
from submerge.engine._described_data import described_data
from submerge.engine.output import check_unfinished, unfinished_folder
from submerge.engine.plan import MergePlan, stored_digest
from submerge.errors import WorkError
from submerge.recipe import ModelEntry, TaskFolder
from submerge.store import MomentFile, digest, file_digest, trained_adapter, write_moments

if TYPE_CHECKING:
    from submerge.calibrate import Step, TaskMoments

__all__ = ["with_moments"]

SUFFIX = ".moments"


def with_moments(
    plan: MergePlan, out: Path, *, resume: bool, progress: Callable[[Step], None] | None
) -> MergePlan:
    """Return the plan of a merge by the second moments that its recipe's data gives.

    They are in the folder `OUT.moments`, a file for each model, which another recipe can name. With `resume`
    a file that was made of the same model and the same data is taken as it is.
    """
    check_unfinished(unfinished_folder(out))
    folder = TaskFolder(out.resolve().with_name(out.name + SUFFIX))
    tensors = sorted(
        {t.parameter for t in plan.tensors if t.action == "merge" and t.is_changed and not t.mixed}
    )
    pending = [task for task in _tasks(plan, folder, tensors) if not (resume and task.is_collected())]
    for task in pending:
        collected = _collected(plan, task, tensors, progress)
        _check_finite(collected, plan.models[task.position].label)
        write_moments(task.path, collected.moments, task.source, collected.kinds)
    return replanned(plan, replace(plan.recipe, moments=folder))


@dataclass(frozen=True)
class _Task:
    """A model whose inputs are looked at: its entry, its position, the file, and what the file is made of."""

    entry: ModelEntry
    position: int
    path: Path
    source: Mapping[str, Any]

    def is_collected(self) -> bool:
        """Return whether the file was made of the same, as it says."""
        same: bool = self.path.exists() and MomentFile.open(self.path).source == self.source
        return same


def _tasks(plan: MergePlan, folder: TaskFolder, tensors: Sequence[str]) -> list[_Task]:
    """Return the models of a merge; raise `RequestError` where a file in the place of theirs is another."""
    digest_of = cache(file_digest)  # the base's files are those of every adapter's model
    tasks = []
    for entry, position in zip(plan.recipe.participants, plan.inputs.participants, strict=True):
        source = _source(plan, entry, position, digest_of) | {"tensors": digest(json.dumps(tensors).encode())}
        path = folder.file(entry.adapter_name)
        if path.exists():
            MomentFile.open(path)  # what is no file of moments is not replaced
        tasks.append(_Task(entry, position, path, json.loads(json.dumps(source))))
    return tasks


def _collected(
    plan: MergePlan, task: _Task, tensors: Sequence[str], progress: Callable[[Step], None] | None
) -> TaskMoments:
    """Return the moments of a model's inputs, after its data ran through it."""
    from submerge.calibrate import Step, task_moments  # here: it loads transformers

    recipe = plan.recipe
    below = plan.inputs.below(task.position)
    assert task.entry.data is not None  # the recipe was checked
    assert below is not None

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(Step(done, total, measuring=True, what="inputs of layers"))

    return task_moments(
        below,
        trained_adapter(plan.models[task.position]),
        task.entry.data,
        plan.inputs.reference_model,
        tensors,
        statistics=recipe.statistics,
        batch_size=recipe.single_option("batch_size"),
        max_length=recipe.single_option("max_length"),
        device=plan.settings.device,
        progress=tell,
    )


def _check_finite(collected: TaskMoments, model: str) -> None:
    """Raise `WorkError` where a model gave NaN or Inf on its data: no merge can be made of that."""
    for name, moment in collected.moments.items():
        if not all(bool(tensor.isfinite().all()) for tensor in moment.tensors().values()):
            what = f"{model}: on its data the inputs of {name} have NaN or Inf"
            raise WorkError(f"{what} — look at the weights of this model, and at its data")


def _source(
    plan: MergePlan, entry: ModelEntry, position: int, digest_of: Callable[[Path], str]
) -> dict[str, Any]:
    """Return digests of all that a model's moments depend on."""
    model, below, recipe = plan.models[position], plan.inputs.below(position), plan.recipe
    assert entry.data is not None
    assert below is not None
    files = [
        *(model.adapter.files if model.adapter else ()),
        *sorted(below.path.glob("*.safetensors")),
    ]
    return {
        "model": [digest_of(file) for file in files],
        "model_digest": stored_digest(below),
        "adapter_digest": model.adapter.digest() if model.adapter else None,
        "scales": model.adapter.scales if model.adapter else {},
        "data": described_data(entry.data),
        "statistics": recipe.statistics,
        "batch_size": recipe.single_option("batch_size"),
        "max_length": recipe.single_option("max_length"),
    }
