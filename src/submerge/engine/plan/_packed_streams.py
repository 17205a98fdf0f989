"""Streams that no loaded model has a place for: transformers packs their parameters together, as experts."""

from __future__ import annotations

from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._stream_parts import stream_parts
from submerge.errors import Problem, few
from submerge.names import empty_model, loaded_names

__all__ = ["packed_streams"]


def packed_streams(plan: MergePlan) -> list[Problem]:
    """Return a problem where tokens of a modality have parameters of their own that cannot be loaded.

    `submerge.load` gates a parameter by its name in the files, which transformers must keep in one piece.
    Models that are not fetched yet, or that transformers does not know, are not looked at.
    """
    streamed = [tensor for tensor in plan.tensors if tensor.has_streams]
    if not streamed or any(model.pending for model in plan.models):
        return []
    model = empty_model(plan.inputs.reference_model.config)
    if model is None:
        return []
    loaded = loaded_names(model, [tensor.name for tensor in streamed])
    packed = [
        tensor.name
        for tensor in streamed
        if tensor.name not in loaded and any(part.rank != 0 for part in stream_parts(plan, tensor).values())
    ]
    if not packed:
        return []
    what = f"transformers packs parameters together that tokens of a modality have otherwise: {few(packed)}"
    hint = "add 'modality_tokens: merged': all tokens run with the merged language model"
    return [Problem(what, plan.inputs.reference_model.label, hint)]
