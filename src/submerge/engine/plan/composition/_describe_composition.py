"""What a plan says of a composed model: where each piece of its specialists lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from submerge.engine.plan.composition._composition import Composition, SpecialistPlan
from submerge.engine.plan.composition._own_modules import ModuleGroup, module_groups
from submerge.errors import few, size
from submerge.store import Checkpoint

__all__ = ["composition_facts", "describe_specialist"]


def describe_specialist(
    own: SpecialistPlan, composition: Composition, models: Sequence[Checkpoint]
) -> dict[str, Any]:
    """Return where the pieces of one specialist lie, as JSON-able data."""
    model = models[own.specialist.model]
    groups = module_groups(own.modules)
    return {
        **own.described(model),
        "own_placeholder_id": own.placeholder.id,
        "encoder": [_module(group) for group in groups if group.is_encoder],
        "projector": [_module(group) for group in groups if not group.is_encoder],
        "language_update": _language_update(model),
        "stream": _stream(own, composition, models),
    }


def _module(group: ModuleGroup) -> dict[str, Any]:
    return {"prefix": group.prefix, "tensors": len(group.tensors), "bytes": group.nbytes}


def _language_update(model: Checkpoint) -> str:
    """Return what of the language model is merged, as far as it is known before values are read."""
    if model.adapter is None:
        return "its language model − the base (zero where it is as it was)"
    return f"{model.adapter.label}, rank {model.adapter.rank}, on its language model"


def _stream(own: SpecialistPlan, composition: Composition, models: Sequence[Checkpoint]) -> str:
    """Return which parameters the modality's tokens run with."""
    specialist = own.specialist
    if not composition.has_streams:
        return "the merged language model"
    if specialist.stream is not None:
        adapter = models[specialist.stream].adapter
        assert adapter is not None
        return f"the base, with {adapter.label}, rank {adapter.rank}"
    return "the base" if specialist.decoupled else "its own language model"


def composition_facts(composition: Composition, models: Sequence[Checkpoint]) -> list[tuple[str, str]]:
    """Return a line for each specialist, and one for what is gated."""
    lines = []
    for own in composition.specialists:
        told = describe_specialist(own, composition, models)
        modules = few(
            [f"{m['prefix']} ({size(m['bytes'])})" for m in (*told["encoder"], *told["projector"])], 4
        )
        lines.append((own.modality, f"{modules}; {own.placeholder.text} is {own.placeholder_id}"))
    gated = "tokens of each modality run with their own parameters"
    return [
        *lines,
        ("gate", gated if composition.has_streams else "none: all tokens run with the merged model"),
    ]
