"""What the tokens of each modality run with for a parameter, and how much of it a composed model's bank has.

Headers tell most of it. Whether a specialist's own values are the base's is known before the merge by their
first bytes alone: it may be otherwise further on, which the merge itself finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan.inputs import Specialist
from submerge.engine.plan.tensors import TensorPlan
from submerge.store import Checkpoint, FileTable, LowRankPart, Part, first_bytes

__all__ = ["StreamPart", "composed_bytes", "is_gated", "is_plain", "stream_model", "stream_parts"]


@dataclass(frozen=True)
class StreamPart:
    """What the tokens of one modality run with for a parameter: text, and what the bank has of it.

    Attributes:
        runs_with: for people.
        nbytes: in the bank.
        rank: of an update with factors, which counts from the base's values; None for values of their own.
    """

    runs_with: str
    nbytes: int = 0
    rank: int | None = None


def stream_model(place: Specialist, models: Sequence[Checkpoint]) -> Checkpoint:
    """Return the model that a specialist's tokens run with.

    It is the specialist's own language model, which may be another than the base, under the adapter of its
    modality, where that was trained apart, or of all tokens.
    """
    model = models[place.model]
    if not place.decoupled:
        return model
    return (model.under or model) if place.stream is None else models[place.stream]


def is_plain(part: Part, tensor: TensorPlan) -> bool:
    """Return whether a part is the product of two matrices that is added to another."""
    if not isinstance(part, LowRankPart) or len(tensor.shape) != 2:
        return False
    packed = part.experts and part.expert is None
    return part.magnitude is None and not packed and not part.kernel


def stream_parts(plan: MergePlan, tensor: TensorPlan) -> dict[str, StreamPart]:
    """Return modality -> what its tokens run with; empty where all tokens run with the merged values."""
    if plan.composition is None or not tensor.has_streams or tensor.action != "merge" or tensor.is_copy:
        return {}
    specialists = (own.specialist for own in plan.composition.specialists)
    return {place.modality: _stream_part(plan, place, tensor) for place in specialists}


def is_gated(plan: MergePlan, tensor: TensorPlan) -> bool:
    """Return whether some tokens seem to run with other values of a parameter than others."""
    parts = stream_parts(plan, tensor).values()
    return any(part.rank != 0 for part in parts) or bool(parts and not _text_is_base(plan, tensor))


def composed_bytes(plan: MergePlan) -> int:
    """Return the bytes of a composed model's bank: the specialists' own modules, and all streams."""
    assert plan.composition is not None
    modules = sum(entry.nbytes for own in plan.composition.stored.values() for entry in own.modules.values())
    return modules + sum(_stream_bytes(plan, tensor) for tensor in plan.tensors)


def _stream_part(plan: MergePlan, place: Specialist, tensor: TensorPlan) -> StreamPart:
    model, name = stream_model(place, plan.models), tensor.name
    part = model.part(name)
    is_base = _begins_as_base(plan, model, name)
    if part is None and is_base:
        return StreamPart("the base's values", rank=0)
    if model.adapter is not None and isinstance(part, LowRankPart) and is_base and is_plain(part, tensor):
        told = f"the base's values with {model.adapter.label}, rank {part.rank}"
        return StreamPart(told, 4 * part.rank * sum(tensor.sides), part.rank)
    own = model.tensors.get(name, plan.inputs.reference_model.tensors[name])
    return StreamPart(f"values of {model.label}", own.nbytes)


def _stream_bytes(plan: MergePlan, tensor: TensorPlan) -> int:
    """Return what the bank has of a parameter: of each stream, and of the base where one counts from that."""
    assert plan.composition is not None
    of_streams = stream_parts(plan, tensor)
    stored = {own.modality for own in plan.composition.stored.values()}
    parts = [part for modality, part in of_streams.items() if modality in stored]
    counts_from_base = any(part.rank is not None for part in parts) and not _text_is_base(plan, tensor)
    return sum(part.nbytes for part in parts) + (_base_bytes(plan, tensor) if counts_from_base else 0)


def _base_bytes(plan: MergePlan, tensor: TensorPlan) -> int:
    """Return what tells the base's values of a parameter: themselves, or the factors of the merged update."""
    values = plan.inputs.reference_model.tensors[tensor.name].nbytes
    if not tensor.matrix or any(member.dense for member in tensor.inputs):
        return values
    rank = sum(member.rank for member in tensor.inputs) * len(tensor.matrices)
    return min(values, 4 * rank * sum(tensor.sides))


def _text_is_base(plan: MergePlan, tensor: TensorPlan) -> bool:
    """Return whether no merged model seems to change a parameter."""
    return not any(
        member.patch or not _begins_as_base(plan, plan.models[member.model], tensor.name)
        for member in tensor.inputs
    )


def _begins_as_base(plan: MergePlan, model: Checkpoint, name: str) -> bool:
    """Return whether a model's values of a tensor, without its adapter, are the base's as far as is known."""
    base = plan.inputs.reference_model
    own, theirs = model.tensors.get(name), base.tensors[name]
    if own is None or own is theirs:
        return True
    replaced = model.adapter is not None and name in model.adapter.replaced
    if replaced or own.dtype != theirs.dtype or model.pending or base.pending:
        return False
    with FileTable() as table:
        return first_bytes(model, name, table) == first_bytes(base, name, table)
