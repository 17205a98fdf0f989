"""Models of a few named tensors without values, and recipes over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.engine.plan import Inputs
from submerge.recipe import Recipe, load_recipe
from submerge.store import Adapter, Checkpoint, LowRankPart, TensorEntry

__all__ = ["SHAPE", "entry", "inputs_of", "low_rank", "model", "recipe_of"]

SHAPE = (4, 6)


def entry(name: str, shape: tuple[int, ...] = SHAPE, dtype: str = "F32") -> TensorEntry:
    """Return a tensor of a file that nothing reads."""
    return TensorEntry(name, dtype, shape, None, 0, 0)


def low_rank(rank: int = 2, shape: tuple[int, int] = SHAPE) -> LowRankPart:
    """Return the part of an adapter that adds factors to a matrix."""
    return LowRankPart(entry("B", (shape[0], rank)), entry("A", (rank, shape[1])), 1.0)


def model(label: str, *tensors: TensorEntry, parts: Mapping[str, LowRankPart] | None = None) -> Checkpoint:
    """Return a model with these tensors, and with an adapter where `parts` are given."""
    place = Path(label)
    adapter = None if parts is None else Adapter(label, place, None, {}, None, None, parts)
    return Checkpoint(label, place, None, {tensor.name: tensor for tensor in tensors}, {}, adapter=adapter)


def recipe_of(method: str = "task_arithmetic", base: bool = True, **keys: Any) -> Recipe:
    """Return a recipe that merges the models `one` and `two`, on `base` or without one."""
    given = {"merge_method": method, "models": [{"model": "one"}, {"model": "two"}], **keys}
    given.setdefault("parameters", {"weight": 0.5})
    return load_recipe(given | ({"base_model": "base"} if base else {}))


def inputs_of(recipe: Recipe, *models: Checkpoint) -> Inputs:
    """Return the inputs of a recipe, whose specs are the models' labels."""
    return Inputs.of(recipe, {model.label: model for model in models})
