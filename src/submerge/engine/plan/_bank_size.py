"""How large the bank of a gate may become, before anything is computed."""

from __future__ import annotations

from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._stream_parts import composed_bytes
from submerge.engine.plan.projectors import ProjectorPlan, prototype_bytes
from submerge.engine.plan.tensors import TensorPlan
from submerge.methods import BankBound

__all__ = ["bank_bounds", "bank_bytes"]


def bank_bytes(plan: MergePlan) -> int:
    """Return the most that a bank may take, from shapes and options alone; about that of a composed model."""
    if plan.composition is not None:
        return composed_bytes(plan)
    if plan.projectors is not None:
        return _projector_bytes(plan, plan.projectors)
    if plan.gate is None:
        return 0
    heads = sum(e.nbytes for task in plan.gate.tasks for e in task.head.values())
    bounds = [list(bank_bounds(plan, tensor).values()) for tensor in plan.tensors]
    shared = sum(max((bound.shared for bound in of_tensor), default=0) for of_tensor in bounds)
    return heads + shared + sum(bound.nbytes for of_tensor in bounds for bound in of_tensor)


def bank_bounds(plan: MergePlan, tensor: TensorPlan) -> dict[str, BankBound]:
    """Return task -> the most that the bank holds of its update of a tensor, for tasks that may change it."""
    spec = tensor.method.gate if tensor.method else None
    if plan.gate is None or spec is None or spec.bound is None or tensor.is_copy:
        return {}
    return {
        task.name: spec.bound(tensor.spec, tensor.values, own.rank)
        for task, own in zip(plan.gate.tasks, tensor.inputs, strict=True)
        if own.patch or not own.relative
    }


def _projector_bytes(plan: MergePlan, projectors: ProjectorPlan) -> int:
    """Return the bytes of all projectors, and the most that prototypes have."""
    models = [plan.models[group.models[0]] for group in projectors.groups]
    base = plan.inputs.reference_model
    return sum(model.tensors[name].nbytes for model in models for name in projectors.names) + prototype_bytes(
        base, projectors.names, projectors.settings, len(projectors.tasks), projectors.count
    )
