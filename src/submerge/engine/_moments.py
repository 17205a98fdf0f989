"""The step before a merge by second moments: the passes over each model's data, and the files they fill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submerge.engine._calibrate import replanned
from submerge.engine.output import check_unfinished, unfinished_folder
from submerge.engine.plan import MergePlan
from submerge.errors import RequestError
from submerge.recipe import DataSource, ModelEntry, MomentFolder, data_spec
from submerge.store import MomentFile, file_digest, write_moments

if TYPE_CHECKING:
    from submerge.calibrate import Step

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
    folder = out.resolve().with_name(out.name + SUFFIX)
    widths = {
        tensor.parameter.removesuffix(".weight"): tensor.sides[1]
        for tensor in plan.tensors
        if tensor.matrix and any(member.patch or not member.relative for member in tensor.inputs)
    }
    digest = cache(file_digest)  # the base's files are those of every adapter's model
    for entry, position in zip(plan.recipe.participants, plan.inputs.participants, strict=True):
        path = folder / f"{entry.adapter_name}.safetensors"
        source = _source(plan, entry, position, digest)
        if not (resume and _is_made_from(path, source)):
            _collect(plan, entry, position, widths, path, source, progress)
    return replanned(plan, replace(plan.recipe, moments=MomentFolder(folder)))


def _collect(
    plan: MergePlan,
    entry: ModelEntry,
    position: int,
    widths: Mapping[str, int],
    path: Path,
    source: Mapping[str, Any],
    progress: Callable[[Step], None] | None,
) -> None:
    """Run a model's data through it, and write the moments of its inputs."""
    from submerge.calibrate import Step, task_moments  # here: it loads transformers

    model, recipe = plan.models[position], plan.recipe
    assert entry.data is not None  # the recipe was checked

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(Step(done, total, measuring=True))

    moments = task_moments(
        _below(plan, position),
        model.adapter,
        entry.data,
        plan.inputs.reference_model,
        widths,
        statistics=recipe.statistics,
        batch_size=recipe.single_option("batch_size"),
        max_length=recipe.single_option("max_length"),
        device=plan.settings.device,
        progress=tell,
    )
    write_moments(path, moments, source)


def _below(plan: MergePlan, position: int) -> Path:
    """Return the folder of a model: its own, or that of what its adapter lies on."""
    model = plan.models[position]
    if model.adapter is None:
        return model.path
    assert plan.inputs.base is not None
    return (model.under or plan.models[plan.inputs.base]).path


def _source(
    plan: MergePlan, entry: ModelEntry, position: int, digest: Callable[[Path], str]
) -> dict[str, Any]:
    """Return digests of all that a model's moments depend on."""
    model, recipe = plan.models[position], plan.recipe
    files = [
        *(model.adapter.files if model.adapter else ()),
        *sorted(_below(plan, position).glob("*.safetensors")),
    ]
    assert entry.data is not None
    return {
        "model": [digest(file) for file in files],
        "data": _described(entry.data),
        "statistics": recipe.statistics,
        "batch_size": recipe.single_option("batch_size"),
        "max_length": recipe.single_option("max_length"),
    }


def _described(source: DataSource) -> dict[str, Any]:
    """Return what of the data is read, with a digest in the place of a file's path."""
    spec = data_spec(source)
    path = Path(spec.path)
    return {
        **vars(spec),
        "columns": dict(spec.columns),
        "path": file_digest(path) if path.is_file() else spec.path,
    }


def _is_made_from(path: Path, source: Mapping[str, Any]) -> bool:
    try:
        made_from = MomentFile.open(path).source
    except RequestError:
        return False
    return bool(made_from == json.loads(json.dumps(source)))  # as the file has it, with lists for tuples
