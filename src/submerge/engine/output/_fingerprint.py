"""What tells one merge from another: a digest of all that the output's bytes depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from submerge.engine.plan import MergePlan
from submerge.errors import WorkError
from submerge.recipe import Recipe, data_files
from submerge.store import DIGEST, digest, file_identity

__all__ = ["fingerprint"]


def fingerprint(plan: MergePlan) -> str:
    """Return a digest of all that the output's bytes depend on, files by size and time of change."""
    try:
        source = [plan.inputs.tokenizer.model] if plan.inputs.tokenizer else []
        read = {file for model in (*plan.models, *source) for file in model.files}
        tasks = plan.gate.tasks if plan.gate else ()
        read |= _data_files(plan.recipe) | set(plan.recipe.moment_files) | set(plan.recipe.prototype_files)
        read |= {entry.file for task in tasks for entry in task.head.values() if entry.file}
        files = {str(file): file_identity(file) for file in sorted(read)}
    except OSError as error:
        raise WorkError(f"{error.filename}: cannot be read any more ({error.strerror})") from error
    described: dict[str, Any] = {
        "recipe": plan.recipe.resolved(),
        "models": [(model.label, model.revision) for model in plan.models],
        "inputs": files,
        "shards": [digest(shard.header) for shard in plan.shards],
        "files": [shard.file for shard in plan.shards],
        "copies": {tensor.name: tensor.parameter for tensor in plan.tensors if tensor.is_copy},
    }
    if fused := {tensor.name: repr(tensor.fused) for tensor in plan.tensors if tensor.fused}:
        described["fused"] = fused  # which the base's configuration tells
    if scales := [(model.label, m.scales) for model in plan.models if (m := model.adapter)]:
        described["scales"] = scales  # which stand in no file of weights
    if plan.recipe.coefficients is not None:
        described["coefficients"] = plan.recipe.coefficients.digest
    if plan.mixture:
        described["gates"] = plan.mixture.digest
    if views := [(model.label, repr(model.views)) for model in plan.models if model.views]:
        described["views"] = views
    if virtual := [(model.label, model.virtual.digest) for model in plan.models if model.virtual]:
        described["virtual"] = virtual
    text = json.dumps(described, sort_keys=True, default=str)
    return f"{DIGEST}:{digest(text.encode())}"


def _data_files(recipe: Recipe) -> set[Path]:
    """Return the files of data from which a recipe's weights are learned, with the images that they name."""
    if recipe.coefficients is not None and recipe.coefficients.path:  # data is not read
        return set()
    sources = [entry.data for entry in recipe.participants if entry.data is not None]
    if not sources:
        return set()
    from submerge.calibrate import image_files  # here: it loads torch

    return {file for source in sources for file in (*data_files(source), *image_files(source))}
