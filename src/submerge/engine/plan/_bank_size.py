"""How large the bank of a gate may become, before anything is computed."""

from __future__ import annotations

from submerge.engine.plan._composition import SpecialistPlan
from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._projectors import ProjectorPlan
from submerge.engine.plan._prototypes import prototype_bytes
from submerge.engine.plan._tensor import TensorPlan
from submerge.methods import BankBound
from submerge.store import LowRankPart

__all__ = ["bank_bounds", "bank_bytes"]


def bank_bytes(plan: MergePlan) -> int:
    """Return an upper bound of the bank's size, from shapes and options alone."""
    if plan.composition is not None:
        return sum(_specialist_bytes(plan, own) for own in plan.composition.specialists) + _base_bytes(plan)
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


def _specialist_bytes(plan: MergePlan, own: SpecialistPlan) -> int:
    """Return the most that a specialist has in the bank: its own modules, and its stream."""
    assert plan.composition is not None
    modules, place = sum(entry.nbytes for entry in own.modules.values()), own.specialist
    position = place.stream if place.decoupled else place.model
    if position is None or not plan.composition.has_streams:
        return modules
    model, stream = plan.models[position], 0
    parts = model.adapter.parts if model.adapter else {}
    for tensor in plan.tensors:
        part, values = parts.get(tensor.name), model.tensors.get(tensor.name)
        if not tensor.has_streams or values is None or (place.decoupled and part is None):
            continue
        factors = 4 * part.rank * sum(tensor.sides) if isinstance(part, LowRankPart) else 0
        stream += max(factors, 0 if place.decoupled and factors else values.nbytes)
    return modules + stream


def _base_bytes(plan: MergePlan) -> int:
    """Return the most that the base's values take in the bank, which streams of updates are counted from."""
    assert plan.composition is not None
    base = plan.inputs.reference_model.tensors
    return sum(base[t.name].nbytes for t in plan.tensors if t.has_streams and t.action == "merge")
