"""Whether moments are those of a recipe's models, as far as their files tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from submerge.engine.plan.inputs import Inputs, stored_digest, unchecked
from submerge.errors import Problem
from submerge.recipe import Recipe
from submerge.store import Adapter, Checkpoint, MomentFile

__all__ = ["other_models", "other_scale", "unchecked_models"]

HINT = "merge with 'data' in the place of 'moments', which collects them anew"


def other_models(files: Sequence[MomentFile], recipe: Recipe, inputs: Inputs) -> list[Problem]:
    """Return which moments were collected of another model or adapter than the recipe's.

    `files` are those of the participants. A model that is not downloaded is not looked at.
    """
    digests: dict[int, str | None] = {}
    problems = []
    for file, entry, position in zip(files, recipe.participants, inputs.participants, strict=True):
        model = inputs.models[position]
        below = model if model.adapter is None else inputs.below(position)
        if id(below) not in digests:
            digests[id(below)] = None if below is None else stored_digest(below)
        if what := _differs(file, model, digests[id(below)]):
            found = f"the moments in {file.path} were collected {what}"
            problems.append(Problem(f"{entry.model}: {found}", entry.where, HINT))
    return problems


def unchecked_models(files: Sequence[MomentFile]) -> list[str]:
    """Return that files do not tell of which models their moments are, if some do not."""
    return unchecked(files, "these moments are of this base and these adapters")


def _differs(file: MomentFile, model: Checkpoint, digest: str | None) -> str:
    """Return with what else than a model moments were collected; empty where with it, or not known."""
    before = file.source.get("model_digest")
    if before is None:
        return ""
    if digest is not None and digest != before:
        return "of another model" if model.adapter is None else "on another base"
    adapter, of_adapter = model.adapter, file.source.get("adapter_digest")
    if adapter is None or adapter.pending:
        return ""
    if adapter.digest() != of_adapter:
        return "with another adapter"
    scaled = other_scale(adapter, file.source.get("scales"))
    return f"when it scaled otherwise: now it {scaled}" if scaled else ""


def other_scale(adapter: Adapter, before: float | Mapping[str, float] | None) -> str:
    """Return by what an adapter scales an update otherwise than `before`; empty where it does not."""
    for name, scale in adapter.scales.items():
        old = before.get(name) if isinstance(before, Mapping) else before
        if old is not None and not math.isclose(old, scale, rel_tol=1e-9):
            return f"scales {name} by {scale:g}, and by {old:g}"
    return ""
