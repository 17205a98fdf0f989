"""A recipe for a mixture of experts that was checked, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from submerge.recipe._recipe import Recipe

__all__ = ["GATE_MODES", "PROMPT_MODES", "Expert", "MixtureRecipe"]

PROMPT_MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed")
"""Gates that are computed from the experts' prompts."""

GATE_MODES = (*PROMPT_MODES, "random", "uniform_random")
"""Where the weights of gates come from."""


@dataclass(frozen=True)
class Expert:
    """A model whose feed-forward blocks are one expert of each layer.

    Attributes:
        model: its spec.
        positive: prompts that are to be routed to it.
        negative: prompts that are to be routed elsewhere.
        noise_scale: standard deviation of noise that is added to its weights.
        residual_scale: factor on its down-projections, and so on all that it adds to the residual stream.
        where: its line in the recipe.
    """

    model: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise_scale: float = 0.0
    residual_scale: float = 1.0
    where: str = ""

    def written(self) -> dict[str, Any]:
        """Return the expert as a recipe writes it."""
        given: dict[str, Any] = {
            "source_model": self.model,
            "positive_prompts": list(self.positive) or None,
            "negative_prompts": list(self.negative) or None,
            "noise_scale": self.noise_scale or None,
            "residual_scale": self.residual_scale if self.residual_scale != 1 else None,
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, eq=False)
class MixtureRecipe(Recipe):
    """A recipe for a mixture of experts; `models` are the distinct models of its experts.

    Attributes:
        experts: those among which the gate chooses, in the order of its rows.
        shared_experts: those that act on every token.
        gate_mode: where the weights of gates come from: one of `GATE_MODES`.
        experts_per_token: how many experts act on a token.
        architecture: what the output's architecture is to begin with; None for the first that fits.

    Examples:
        >>> from submerge.recipe import load_mixture
        >>> experts = [{"source_model": "chat"}, {"source_model": "code"}]
        >>> recipe = load_mixture({"base_model": "base", "gate_mode": "random", "experts": experts})
        >>> recipe.experts_per_token, [expert.model for expert in recipe.experts]
        (2, ['chat', 'code'])
    """

    experts: tuple[Expert, ...] = ()
    shared_experts: tuple[Expert, ...] = ()
    gate_mode: str = "hidden"
    experts_per_token: int = 2
    architecture: str | None = None

    @property
    def reads_prompts(self) -> bool:
        """Whether gates are computed from prompts."""
        return self.gate_mode in PROMPT_MODES

    @property
    def gates_shared(self) -> bool:
        """Whether shared experts have prompts, by which a gate weighs them."""
        return any(expert.positive for expert in self.shared_experts)

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain data that JSON holds and `load_mixture` reads back."""
        sections: dict[str, Any] = {
            "base_model": self.base,
            "gate_mode": self.gate_mode,
            "dtype": self.dtype,
            "experts_per_token": self.experts_per_token,
            "architecture": self.architecture,
            "experts": _written(self.experts),
            "shared_experts": _written(self.shared_experts) or None,
            "seed": self.seed,
        }
        return {key: value for key, value in sections.items() if value is not None}


def _written(experts: Sequence[Expert]) -> list[dict[str, Any]]:
    return [expert.written() for expert in experts]
