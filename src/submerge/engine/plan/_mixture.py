"""What is planned of a mixture of experts beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from submerge.engine.plan._show import Fact
from submerge.engine.plan.mixtures import MixtureForm
from submerge.recipe import MixtureRecipe
from submerge.store import Checkpoint

__all__ = ["MixturePlan", "describe_mixture", "mixture_facts"]


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
