"""The trained models of one seed and kind, as merges, routers and servers use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.replication.cache import Cache, trained
from benchmarks.replication.methods import Merge
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Suite
from benchmarks.replication.train import load_heads

__all__ = ["MEMORY", "Specialists"]

MEMORY = 16_000_000_000
"""What merges may take, in bytes."""


class Specialists:
    """Where the models of a seed and kind lie, what they were trained with, and their tasks' frozen heads."""

    def __init__(self, suite: Suite, cache: Cache, splits: Mapping[str, Split], kind: str, seed: int) -> None:
        self.suite, self.cache, self.splits, self.kind, self.seed = suite, cache, splits, kind, seed
        self.tasks, self.domain = list(splits), suite.domain
        self.models = [cache.specialist(seed, kind, task) for task in splits]
        self.trained = trained(self.models, f"{kind}, seed {seed}")
        self.heads = load_heads(suite, cache, splits, seed)

    def load(self, folder: Path, device: str = "cpu") -> Any:
        """Return the model of a folder, for use."""
        return self.domain.load(folder, self.cache.base, device)

    def base(self, device: str = "cpu") -> Any:
        """Return the base, for use."""
        return self.load(self.cache.base, device)

    def batches(self, task: str, count: int, size: int = 16) -> list[dict[str, torch.Tensor]]:
        """Return the inputs of the first validation items of a task."""
        split = self.splits[task]
        items = self.domain.items(split.validation[:count], self.cache.base, split.kind)
        return [
            items.batch(list(range(start, min(start + size, len(items)))))
            for start in range(0, len(items), size)
        ]

    def result(self, row: str) -> Path:
        """Return the folder of a merge's recipe and scores, or of a ceiling's scores."""
        return self.cache.result(self.seed, self.kind, row)

    def merge_mass(
        self,
        out: Path,
        threads: int,
        parameters: Mapping[str, Any],
        forms: Sequence[str] | None = None,
    ) -> Path:
        """Merge all tasks, under their names, by MASS with these parameters; `forms` are of their inputs."""
        recipe = Merge("mass").named_recipe(self.cache.base, self.models, self.tasks, self.kind)
        for entry, form in zip(recipe["models"], forms or (), strict=forms is not None):
            entry["parameters"] = {"form": form}
        if parameters:
            recipe["parameters"] = dict(parameters)
        settings = submerge.Settings(threads=threads, max_memory=MEMORY)
        submerge.merge(recipe, out, settings=settings, overwrite=True)
        return out
