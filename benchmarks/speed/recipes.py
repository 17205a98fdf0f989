"""The merges that are timed: one mergekit recipe per method, the same file for both tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.speed.models import BASE, TUNED

__all__ = ["METHODS", "TimedRecipe", "timed_recipes"]


@dataclass(frozen=True)
class TimedRecipe:
    """A method with its inputs: `models` are merged, `base` is what updates are taken against.

    `passes` is how often the method goes over its inputs, `pair` says that it takes two models and no more,
    `draws` that its masks are random: another tool's are others. `dtype` is that of the result.
    """

    method: str
    passes: int = 2
    models: tuple[str, ...] = TUNED
    base: str | None = BASE
    each: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    pair: bool = False
    draws: bool = False
    dtype: str = "bfloat16"

    def inputs(self) -> tuple[str, ...]:
        """Return the names of the models that must be read, each once."""
        return tuple(dict.fromkeys((*([self.base] if self.base else []), *self.models)))

    def write(self, path: Path, folders: Mapping[str, Path]) -> None:
        """Write the recipe with absolute paths."""
        models: list[dict[str, Any]] = [{"model": str(folders[name].resolve())} for name in self.models]
        if self.each:
            models = [model | {"parameters": dict(self.each)} for model in models]
        recipe: dict[str, Any] = {"merge_method": self.method, "models": models, "dtype": self.dtype}
        if self.base:
            recipe["base_model"] = str(folders[self.base].resolve())
        if self.shared:
            recipe["parameters"] = dict(self.shared)
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))


WEIGHT = {"weight": 0.3}
SPARSE = WEIGHT | {"density": 0.5}
CUT = SPARSE | {"gamma": 0.01}
METHODS = {
    merge.method: merge
    for merge in (
        TimedRecipe("linear", 1, base=None, each=WEIGHT),
        TimedRecipe("task_arithmetic", 1, each=WEIGHT),
        TimedRecipe("slerp", models=TUNED[:2], base=TUNED[0], shared={"t": 0.4}, pair=True),
        TimedRecipe("nuslerp", models=TUNED[:2], base=None, each={"weight": 0.5}, pair=True),
        TimedRecipe("karcher", base=None),
        TimedRecipe("model_stock"),
        TimedRecipe("ties", each=SPARSE),
        TimedRecipe("dare_linear", each=SPARSE, draws=True),
        TimedRecipe("dare_ties", each=SPARSE, draws=True),
        TimedRecipe("della", each=SPARSE | {"epsilon": 0.15}, draws=True),
        TimedRecipe("breadcrumbs", each=CUT),
        TimedRecipe("breadcrumbs_ties", each=CUT),
        TimedRecipe("sce", 3, shared={"select_topk": 0.5}),
    )
}
"""Method -> its merge of three models (of two, where it takes no more) into bfloat16."""


def timed_recipes(tuned: Sequence[str] = TUNED, dtype: str = "bfloat16") -> dict[str, TimedRecipe]:
    """Return method -> its merge of the tuned models into a number format.

    More models than three leave out those methods that take two.
    """
    if tuple(tuned) == TUNED:
        return {name: replace(merge, dtype=dtype) for name, merge in METHODS.items()}
    return {
        name: replace(merge, models=tuple(tuned), dtype=dtype)
        for name, merge in METHODS.items()
        if not merge.pair
    }
