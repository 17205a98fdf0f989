"""The merges that are timed: one mergekit recipe per method, the same file for both tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.speed.models import BASE, TUNED

__all__ = ["METHODS", "TimedRecipe"]


@dataclass(frozen=True)
class TimedRecipe:
    """A method with its inputs: `models` are merged, `base` is what updates are taken against."""

    method: str
    models: tuple[str, ...] = TUNED
    base: str | None = BASE
    each: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self) -> tuple[str, ...]:
        """Return the names of the models that must be read, each once."""
        return tuple(dict.fromkeys((*([self.base] if self.base else []), *self.models)))

    def write(self, path: Path, folders: Mapping[str, Path]) -> None:
        """Write the recipe with absolute paths."""
        models: list[dict[str, Any]] = [{"model": str(folders[name].resolve())} for name in self.models]
        if self.each:
            models = [model | {"parameters": dict(self.each)} for model in models]
        recipe: dict[str, Any] = {"merge_method": self.method, "models": models, "dtype": "bfloat16"}
        if self.base:
            recipe["base_model"] = str(folders[self.base].resolve())
        if self.shared:
            recipe["parameters"] = dict(self.shared)
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))


METHODS = {
    merge.method: merge
    for merge in (
        TimedRecipe("linear", base=None, each={"weight": 0.3}),
        TimedRecipe("task_arithmetic", each={"weight": 0.3}),
        TimedRecipe("model_stock"),
        TimedRecipe("slerp", models=TUNED[:2], base=TUNED[0], shared={"t": 0.4}),
        TimedRecipe("karcher", base=None),
        TimedRecipe("dare_ties", each={"weight": 0.3, "density": 0.5}),
        TimedRecipe("sce", shared={"select_topk": 0.5}),
        TimedRecipe("ties", each={"weight": 0.3, "density": 0.5}),
    )
}
