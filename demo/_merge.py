"""The merges: mergekit-style recipes, run through the command line as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ADAPTER_RECIPES", "GROWN", "RECIPES", "SERVED", "Recipe", "merge_all"]


@dataclass(frozen=True, eq=False)  # a key of dicts, by identity
class Recipe:
    """A method and its options; `scaled` where a free factor λ multiplies the merged update.

    `factor` is how the method calls λ. With `lora` it merges adapters, and into an adapter unless the
    merge is no low-rank update (`form`). `learned` are settings by which coefficients are learned from images
    without classes; `variant` tells two recipes of one method apart.
    """

    method: str
    scaled: bool = False
    factor: str = "lambda"
    lora: bool = False
    form: str = "checkpoint"
    needs_base: bool = True
    each: Mapping[str, float] = field(default_factory=dict)
    shared: Mapping[str, float | str] = field(default_factory=dict)
    learned: Mapping[str, float | str] | None = None
    variant: str = ""

    @property
    def name(self) -> str:
        """Of the recipe's file, and of the folder that it is merged into."""
        return "-".join(part for part in ("lora" * self.lora, self.method, self.variant) if part)

    def write(self, path: Path, base: Path, tuned: Mapping[str, Path], scale: float) -> None:
        """Write the recipe as YAML, for the fine-tunes by task."""
        models: list[dict[str, Any]] = [{"model": str(model)} for model in tuned.values()]
        if self.learned is not None:
            models = [model | {"name": task} for model, task in zip(models, tuned, strict=True)]
        if self.each:
            models = [model | {"parameters": dict(self.each)} for model in models]
        shared = dict(self.shared) | ({self.factor: scale} if self.scaled else {})
        recipe: dict[str, Any] = {"merge_method": self.method}
        if self.needs_base:
            recipe["base_model"] = str(base)
        recipe["models"] = models
        if shared:
            recipe["parameters"] = shared
        if self.learned is not None:
            recipe["coefficients"] = str(path.with_suffix(".json"))
        if self.form != "checkpoint":
            recipe["output"] = {"as": self.form}
        recipe["dtype"] = "float32"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))


RECIPES = (
    Recipe("linear", needs_base=False, each={"weight": 1.0}),
    Recipe("karcher", needs_base=False),
    Recipe("model_stock"),
    Recipe("sce", shared={"select_topk": 0.5}),
    Recipe("task_arithmetic", scaled=True, each={"weight": 1.0}),
    Recipe("breadcrumbs", scaled=True, each={"weight": 1.0, "density": 0.8, "gamma": 0.01}),
    Recipe("ties", scaled=True, each={"weight": 1.0, "density": 0.3}),
    Recipe("dare_ties", scaled=True, each={"weight": 1.0, "density": 0.7}),
    Recipe("della", scaled=True, each={"weight": 1.0, "density": 0.7, "epsilon": 0.1}),
)

ADAPTER_RECIPES = (
    Recipe("ties", scaled=True, lora=True, each={"weight": 1.0, "density": 0.3}),
    *(
        Recipe(method, scaled=True, factor="scale", lora=True, form="adapter")
        for method in ("cat", "knots_ties", "tsv_m", "ssam")
    ),
    Recipe("nsc", lora=True, form="adapter", learned={}),
    Recipe(
        "nsc",
        lora=True,
        form="adapter",
        learned={"objective": "match", "learning_rate": 0.01},
        variant="match",
    ),
)
"""Merges of LoRA adapters. TIES is no low-rank update; the others need not be made larger to be used."""

GROWN = Recipe("many", lora=True, form="adapter")
"""The merge of a state to which the adapters are added one after another, each with images of its task."""

SERVED = Recipe("mass", shared={"pooling": "cls"})
"""The merge that finds the task of each image; on validation images the best pooling."""


def merge_all(jobs: Mapping[Path, Path]) -> dict[Path, dict[str, Any]]:
    """Merge every recipe file into its folder, two at a time; return folder -> the command's summary."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs.values(), pool.map(_merge, jobs, jobs.values()), strict=True))


def _merge(recipe: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "submerge", "merge", str(recipe), "-o", str(out)]
    command += ["--threads", "1", "--overwrite", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)
