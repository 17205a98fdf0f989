"""Which merges need no folder: those whose result can be computed range by range whenever it is read."""

from __future__ import annotations

from submerge.deferred import np
from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan.tensors import TensorPlan, reading_bytes
from submerge.store import VirtualModel

__all__ = ["can_be_virtual", "reads_values_alone", "virtual_model"]


def can_be_virtual(plan: MergePlan) -> bool:
    """Return whether any range of a merge's result can be computed by itself, with the bytes of a folder.

    Each tensor is then merged in one pass without a reduction, element by element, or copied. Updates of
    adapters are not: they are products, which are rounded otherwise in other ranges. Nor are copies that are
    compared with other models' tensors, and mixtures of experts.
    """
    kept = plan.gate_record or plan.recipe.output.form == "adapter" or plan.mixture
    subfolders = plan.inputs.reference_model.other_weights
    return not (kept or subfolders) and all(map(_is_local, plan.tensors))


def reads_values_alone(plan: MergePlan) -> bool:
    """Return whether a merge takes values of its models alone: it runs none of them, and keeps none."""
    recipe = plan.recipe
    runs_models = recipe.calibrates or recipe.collects_moments or recipe.makes_prototypes
    return not (runs_models or recipe.composed or plan.gate_record or plan.mixture)


def virtual_model(plan: MergePlan, digest: str = "") -> VirtualModel:
    """Return what is known of the model that a plan merges as it is read; `digest` is of the plan."""
    return VirtualModel(
        weights={shard.file: shard.size for shard in plan.shards},
        files=tuple(dict.fromkeys(file for model in plan.models for file in model.files)),
        places=tuple(dict.fromkeys(place for model in plan.models for place in model.places)),
        nbytes=plan.bytes_read,
        worker_bytes=reading_bytes(plan.tensors, plan.models),
        digest=digest,
    )


def _is_local(tensor: TensorPlan) -> bool:
    """Return whether each element of a tensor depends on the models' same elements alone."""
    if tensor.action == "copy":
        return len(tensor.inputs) == 1
    if tensor.action == "take_base" or not tensor.numel:
        return not tensor.uses_torch
    return not tensor.uses_torch and tensor.width == 1 and not _reduces(tensor)


def _reduces(tensor: TensorPlan) -> bool:
    """Return whether the method asks for a reduction over a tensor before it folds."""
    assert tensor.method is not None  # what else is merged
    steps = tensor.method.plan(tensor.spec, tensor.values)
    with np.errstate(all="ignore"):
        reduction = next(steps, None)
    steps.close()
    return reduction is not None
