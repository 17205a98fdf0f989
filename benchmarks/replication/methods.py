"""The merges that are compared: a row for each, and the recipe that a row becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "AVERAGE",
    "FAST",
    "GRID",
    "HIGHER",
    "MANY",
    "MANY_DEFAULT",
    "ROWS",
    "Merge",
    "adapter_rows",
    "rows",
    "sequence_rows",
    "write_recipe",
]

GRID = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.4, 2.0, 3.0)
"""Of every free scale. It reaches low for sums of updates, and high for means and votes."""
HIGHER = (4.5, 6.5, 9.0)
"""For methods whose merge of many tasks has smaller singular values than each task's update."""
BOTH = ("full", "lora")


@dataclass(frozen=True)
class Merge:
    """A method and its options; `factor` is how it calls its free scale, empty where it has none, and
    `higher` are scales above the bench's grid that it is tried with, too.

    `each` holds for each model, `shared` for the merge. `form` is what a merge of adapters becomes.
    `peft` is the combination of PEFT's `add_weighted_adapter` that is the same method, if there is one.
    """

    name: str
    factor: str = ""
    each: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    kinds: tuple[str, ...] = BOTH
    form: str = "checkpoint"
    based: bool = True
    mergekit: bool = False
    peft: str = ""
    higher: tuple[float, ...] = ()

    def recipe(self, base: Path, models: Sequence[Path], scale: float | None, kind: str) -> dict[str, Any]:
        """Return the recipe for these models, in mergekit's form."""
        entries: list[dict[str, Any]] = [{"model": str(model)} for model in models]
        if self.each:
            entries = [entry | {"parameters": dict(self.each)} for entry in entries]
        recipe: dict[str, Any] = {"merge_method": self.method or self.name}
        if self.based or kind == "lora":
            recipe["base_model"] = str(base)
        recipe["models"] = entries
        shared = dict(self.shared) | ({self.factor: scale} if self.factor and scale is not None else {})
        if shared:
            recipe["parameters"] = shared
        if kind == "lora" and self.form == "adapter":
            recipe["output"] = {"as": "adapter"}
        return recipe | {"dtype": "float32"}

    def named_recipe(
        self, base: Path, models: Sequence[Path], names: Sequence[str], kind: str
    ) -> dict[str, Any]:
        """Return the recipe for these models under names, by which they can be asked for when served."""
        recipe = self.recipe(base, models, None, kind)
        for entry, name in zip(recipe["models"], names, strict=True):
            entry["name"] = name
        return recipe

    def write(
        self, path: Path, base: Path, models: Sequence[Path], scale: float | None = None, kind: str = "full"
    ) -> Path:
        """Write the recipe as YAML; return its path."""
        return write_recipe(self.recipe(base, models, scale, kind), path)

    def facts(self) -> dict[str, Any]:
        """Return what decides about the result, for a marker."""
        return {
            "method": self.method or self.name,
            "factor": self.factor,
            "each": dict(self.each),
            "shared": dict(self.shared),
            "form": self.form,
        }


def write_recipe(recipe: Mapping[str, Any], path: Path) -> Path:
    """Write a recipe as YAML; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    return path


_ONE = {"weight": 1.0}
_LORA = ("lora",)

ROWS = (
    Merge("linear", each=_ONE, based=False, kinds=("full",), mergekit=True),
    Merge("karcher", based=False, kinds=("full",)),
    Merge("model_stock", mergekit=True),
    Merge("sce", shared={"select_topk": 0.5}, mergekit=True),
    Merge("task_arithmetic", "lambda", _ONE, form="adapter", mergekit=True),
    Merge("ties", "lambda", _ONE | {"density": 0.2}, mergekit=True, peft="ties_svd"),
    Merge("dare_linear", "lambda", _ONE | {"density": 0.3}, mergekit=True),
    Merge("dare_ties", "lambda", _ONE | {"density": 0.3}, mergekit=True),
    Merge("della", "lambda", _ONE | {"density": 0.5, "epsilon": 0.1}, mergekit=True),
    Merge("della_linear", "lambda", _ONE | {"density": 0.5, "epsilon": 0.1}, mergekit=True),
    Merge("breadcrumbs", "lambda", _ONE | {"density": 0.85, "gamma": 0.01}, mergekit=True),
    Merge("breadcrumbs_ties", "lambda", _ONE | {"density": 0.85, "gamma": 0.01}, mergekit=True),
    Merge("cat", "scale", kinds=_LORA, form="adapter", peft="cat"),
    Merge("knots_ties", "scale", kinds=_LORA, form="adapter"),
    Merge("tsv_m", "scale", form="adapter"),
    Merge("iso_c", "scale", form="adapter", higher=HIGHER),
    Merge("iso_cts", "scale", form="adapter", higher=HIGHER),
    Merge("wudi", "scale", form="adapter"),
    Merge("aswudi", "scale", shared={"variant": "aswudi"}, method="wudi", form="adapter"),
    Merge("ssam", "scale", kinds=_LORA, form="adapter"),
    Merge("ssam_half", "scale", shared={"rank": 8}, method="ssam", kinds=_LORA, form="adapter"),
)
"""All methods that merge any number of models. `slerp` and `nuslerp` take two, `passthrough` takes one."""

FAST = ("task_arithmetic", "ties", "tsv_m", "cat")
"""Of `--fast`."""


def rows(kind: str, names: Sequence[str] | None = None, rank: int = 0) -> list[Merge]:
    """Return the merges of full fine-tunes or of adapters, all or those named.

    A row that gives the adapters' own rank is left out: that is the method's default.
    """
    wanted = [row for row in ROWS if kind in row.kinds and (names is None or row.name in names)]
    return [row for row in wanted if not rank or row.shared.get("rank") != rank]


AVERAGE = Merge("average", each={"weight": 1.0}, method="linear", kinds=_LORA)
"""Of adapters; what merges are compared with on the decoder."""

MANY = Merge("many", "scale", kinds=_LORA)
"""Of adapters that are added to a state one after another (LPM); it needs inputs of each task."""
MANY_DEFAULT = Merge("many_default", method="many", kinds=_LORA)
"""The same at its default scale, 1, which nothing tunes: few validation items may choose a worse one."""


def sequence_rows(kind: str, names: Sequence[str] | None = None) -> list[Merge]:
    """Return the merges of a state's tasks, all or those named; there are none of full fine-tunes."""
    every = (MANY, MANY_DEFAULT)
    return [row for row in every if kind in row.kinds and (names is None or row.name in names)]


def adapter_rows(rank: int, names: Sequence[str] | None = None, extra: Sequence[Merge] = ()) -> list[Merge]:
    """Return the average, all merges of adapters of a rank, and the extra ones.

    With names, the average and those.
    """
    return [
        row
        for row in (AVERAGE, *rows("lora", rank=rank), *extra)
        if names is None or row is AVERAGE or row.name in names
    ]
