"""What is planned of a mixture of experts beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from submerge.engine.plan._show import Fact
from submerge.engine.plan.mixtures import MixtureForm
from submerge.recipe import Expert, MixtureRecipe
from submerge.store import Checkpoint

__all__ = ["MixturePlan", "describe_mixture", "explain_mixed", "mixture_facts"]


@dataclass(frozen=True)
class MixturePlan:
    """A mixture of experts, as it will be written.

    Attributes:
        form: its architecture.
        recipe: what was asked for.
        base: the base with all of its tensors, as it answers prompts.
        config: its configuration.
        gates: the position of the model that has the gates' weights, and what else no file has.
        gate_names: for each layer, the tensors of its gate and of that of the shared expert, if there is one
            that prompts or chance decide on.
        parameters: how many there are.
        active: how many of them act on one token.
        expert_of: by its name, the expert that a tensor is of.
        digest: of the gates' weights, once they are computed from prompts.
    """

    form: MixtureForm
    recipe: MixtureRecipe
    base: Checkpoint
    config: Mapping[str, Any]
    gates: int
    gate_names: tuple[tuple[str, ...], ...]
    parameters: int
    active: int
    expert_of: Mapping[str, Expert]
    digest: str = ""


_GATES = {
    "hidden": "of the base's states at the last token of each prompt, before each layer",
    "hidden_last": "of the base's states at the last token of each prompt, before each layer",
    "hidden_avg": "of the means of the base's states over each prompt, before each layer",
    "cheap_embed": "of the mean embeddings of the prompts' tokens, the same for all layers",
    "random": "at random, from a normal distribution",
    "uniform_random": "at random, as a new linear map of torch",
}
"""What the gates' weights are made of."""


def describe_mixture(plan: MixturePlan) -> dict[str, Any]:
    """Return what a mixture will be, as JSON-able data."""
    recipe = plan.recipe
    return {
        "architecture": plan.form.architecture,
        "layers": len(plan.gate_names),
        "experts": [expert.written() for expert in recipe.experts],
        **({"shared_experts": [e.written() for e in recipe.shared_experts]} if recipe.shared_experts else {}),
        "experts_per_token": recipe.experts_per_token,
        "gate_mode": recipe.gate_mode,
        "gates": _GATES[recipe.gate_mode],
        "parameters": plan.parameters,
        "active_parameters": plan.active,
    }


def mixture_facts(plan: MixturePlan) -> list[Fact]:
    """Return what a printed plan says of a mixture."""
    recipe = plan.recipe
    shared = f" and {len(recipe.shared_experts)} shared" if recipe.shared_experts else ""
    return [
        ("architecture", plan.form.architecture),
        ("experts", f"{len(recipe.experts)}{shared}, {recipe.experts_per_token} of them for a token"),
        ("parameters", f"{plan.parameters:,}, of which {plan.active:,} act on a token"),
        ("gates", _GATES[recipe.gate_mode]),
    ]


def explain_mixed(plan: MixturePlan, name: str, values: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return what a tensor of experts or gates is made with, each value with why, as JSON-able data.

    `values` are the options with which it is copied.
    """
    expert, recipe = plan.expert_of.get(name), plan.recipe
    if expert is not None:
        why = {key: _place(expert.where if key in expert.written() else None) for key in values}
        if values["residual_scale"] != expert.residual_scale:
            is_scaled = values["residual_scale"] != 1
            doubled = "twice the expert's: a constant gate halves what it adds"
            why["residual_scale"] = doubled if is_scaled else "the expert's is for its down-projection"
        return {key: [{"value": value, "why": why[key]}] for key, value in values.items()}
    gate = next((names for names in plan.gate_names if name in names), None)
    if gate is None:
        return {}
    of = recipe.experts if name == gate[0] else recipe.shared_experts
    lines: dict[str, list[dict[str, Any]]] = {
        "gate_mode": [{"value": recipe.gate_mode, "why": _GATES[recipe.gate_mode]}]
    }
    for key, prompts in (("positive_prompts", "positive"), ("negative_prompts", "negative")):
        rows = [(own, list(getattr(own, prompts))) for own in of if recipe.reads_prompts]
        if any(texts for _, texts in rows):
            lines[key] = [{"value": t, "why": _place(own.where), "model": own.model} for own, t in rows]
    return lines


def _place(where: str | None) -> str:
    """Return where a value stands in the recipe, as an explanation shows it."""
    return f"({where})" if where else "default"
