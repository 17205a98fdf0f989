"""A recipe for a mixture of experts as mergekit-moe reads it, where it makes the same."""

from __future__ import annotations

import yaml

from submerge.recipe._mixture import MixtureRecipe

__all__ = ["to_mergekit_moe"]


def to_mergekit_moe(recipe: MixtureRecipe) -> str | None:
    """Return YAML with which mergekit-moe makes the same mixture as `recipe`, or None where it does not.

    The seed, which it does not have, is left out. None comes back where it asks for prompts that are not
    there, for results of other documents, and for shared experts where it takes another architecture, or has
    no gate that is constant.
    """
    experts = (*recipe.experts, *recipe.shared_experts)
    lacks_prompts = recipe.gate_mode != "random" and not all(expert.positive for expert in experts)
    chooses_otherwise = bool(recipe.shared_experts) and (recipe.architecture is None or lacks_prompts)
    if (
        recipe.parts
        or lacks_prompts
        or chooses_otherwise
        or (recipe.shared_experts and not recipe.gates_shared)
    ):
        return None
    given = {key: value for key, value in recipe.resolved().items() if key != "seed"}
    return yaml.safe_dump(given, sort_keys=False, default_flow_style=None, allow_unicode=True)
