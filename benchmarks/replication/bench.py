"""What all suites do with a row of merges: tune it on validation, test it once, say what it costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submerge
from benchmarks.console import Say, silent
from benchmarks.process import measure, merge_command
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.methods import Merge
from benchmarks.replication.tune import tune

__all__ = ["Bench", "MergeOptions", "Scores", "weight_bytes"]

Scores = dict[str, float]
"""Task, or question, -> score."""


@dataclass(frozen=True)
class MergeOptions:
    """Which scales are tried, and what is measured beside scores.

    `screen` is on how many validation items a task scales are screened; 0 scores every scale on all. With
    `costs`, the chosen merge is done once more as a process, for its time and its peak memory; with `peers`,
    mergekit and PEFT do it too where they have the method.
    """

    grid: tuple[float, ...]
    screen: int = 50
    costs: bool = True
    peers: bool = True
    device: str = "cpu"
    threads: int = 1


class Bench:
    """Models of one base, and their merges by every method.

    A subclass says in `facts` what decides about its results besides the row, and gives `measured` a
    function that tunes and tests a row.
    """

    facts: Mapping[str, Any]
    memory = 4_000_000_000
    """What a merge may take, in bytes."""

    def __init__(
        self, base: Path, models: Sequence[Path], kind: str, options: MergeOptions, say: Say = silent
    ) -> None:
        self.base, self.models, self.kind, self.options, self.say = base, models, kind, options, say

    def config(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what decides about the result of a row."""
        return {"row": row, **self.facts}

    def grid(self, row: Merge) -> tuple[float, ...]:
        """Return the scales that are tried for a row."""
        return self.options.grid if row.factor else ()

    def merge(self, row: Merge, scale: float | None, part: Path, tasks: int | None = None) -> Path:
        """Write the recipe to `part`, and merge the models, or the first `tasks`; return the new folder."""
        return self.merge_by(
            row.write(part / "recipe.yaml", self.base, self.models[:tasks], scale, self.kind)
        )

    def merge_by(self, recipe: Path) -> Path:
        """Merge by a recipe; return the new folder, which lies beside it."""
        settings = submerge.Settings(threads=self.options.threads, max_memory=self.memory)
        submerge.merge(recipe, recipe.parent / "merged", settings=settings, overwrite=True)
        return recipe.parent / "merged"

    def measured(
        self,
        folder: Path,
        row: Mapping[str, Any],
        tune_and_test: Callable[[Path, Result], Path],
        line: Callable[[Result], str],
        beside: Callable[[Path, Result], None] = lambda part, result: None,
    ) -> Result:
        """Return everything about a row: from the cache, or by tuning and testing it.

        `tune_and_test` gets a folder and the result that it completes, and returns the merge of all models.
        `beside` measures what does not count as time, and `line` is printed of the result in the end.
        """

        def make(part: Path, result: Result) -> None:
            with timed(result, "seconds_in_all"):
                out = tune_and_test(part, result)
            result["bytes"] = weight_bytes(out)
            if self.options.costs:
                result["cost"] = self._cost(part, out)
            beside(part, result)
            shutil.rmtree(out)
            self.say(line(result))

        return cached(folder, self.config(row), make)

    def _cost(self, part: Path, out: Path) -> dict[str, float]:
        """Return time and peak memory of the merge of `part`, done once more as a process."""
        command = merge_command(part / "recipe.yaml", out, self.options.threads, "--overwrite")
        run = measure(command, part / "merge.log")
        return {"seconds": round(run.seconds, 2), "peak_bytes": run.peak_bytes}

    def choose(
        self,
        row: Merge,
        validate: Callable[[float | None], Scores],
        summary: Callable[[Scores], Mapping[str, float]],
        near: float | None = None,
    ) -> Result:
        """Return the best scale by the summary's "mean", and all that was scored on the way.

        Scales are tried as `tune` screens them, from `near` on, each on all validation items.
        """
        scored: dict[float | None, Scores] = {}

        def score(scale: float | None) -> float:
            if scale not in scored:
                scored[scale] = validate(scale)
            return summary(scored[scale])["mean"]

        if not row.factor:
            score(None)
            return {"validation": scored[None]}
        choice = tune(self.grid(row), score, score, near=near)
        in_order = sorted(scored.items(), key=lambda pair: pair[0] or 0.0)
        return {
            "scale": choice.scale,
            "at_end": choice.at_end,
            "validation": scored[choice.scale],
            "curve": {str(scale): summary(scores) for scale, scores in in_order},
        }


def weight_bytes(folder: Path) -> int:
    """Return the bytes of a folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
