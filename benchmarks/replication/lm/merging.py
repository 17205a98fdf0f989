"""Merges adapters of the LM by a recipe, and chooses a merge's scale."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submerge
from benchmarks.replication.methods import Merge, rows
from benchmarks.replication.tune import tune
from benchmarks.speed.measure import measure

__all__ = ["AVERAGE", "choose", "cost", "merge", "merges"]

Scores = Mapping[str, float]
AVERAGE = Merge("average", each={"weight": 1.0}, method="linear", kinds=("lora",))
MEMORY = 4_000_000_000


def merges(rank: int, names: Sequence[str] | None = None, extra: Sequence[Merge] = ()) -> list[Merge]:
    """Return the average, all merges of adapters of a rank, and the extra ones.

    With names, the average and those.
    """
    return [
        row
        for row in (AVERAGE, *rows("lora", rank=rank), *extra)
        if names is None or row is AVERAGE or row.name in names
    ]


def merge(
    row: Merge, lm: Path, models: Sequence[Path], scale: float | None, part: Path, threads: int
) -> Path:
    """Write the recipe to `part`, and merge by it; return the folder of the result."""
    recipe = row.write(part / "recipe.yaml", lm, models, scale, "lora")
    out = part / "merged"
    settings = submerge.Settings(threads=threads, max_memory=MEMORY)
    submerge.merge(recipe, out, settings=settings, overwrite=True)
    return out


def choose(
    row: Merge,
    grid: Sequence[float],
    scores: Callable[[float | None], Scores],
    summary: Callable[[Scores], Mapping[str, float]],
) -> dict[str, Any]:
    """Return the best scale by the summary's "mean", and what was seen on the way.

    Scales are tried as `tune` screens them, each on all validation items.
    """
    seen: dict[float | None, Scores] = {}

    def score(scale: float | None) -> float:
        if scale not in seen:
            seen[scale] = scores(scale)
        return summary(seen[scale])["mean"]

    if not row.factor:
        score(None)
        return {"validation": seen[None]}
    choice = tune(grid, score, score)
    curve = {str(scale): summary(some) for scale, some in sorted(seen.items(), key=lambda one: one[0] or 0.0)}
    return {
        "scale": choice.scale,
        "at_end": choice.at_end,
        "validation": seen[choice.scale],
        "curve": curve,
    }


def cost(part: Path, out: Path, threads: int) -> dict[str, float]:
    """Return time and peak memory of the merge of `part`, done once more as a process."""
    command = [sys.executable, "-m", "submerge", "merge", str(part / "recipe.yaml"), "-o", str(out)]
    run = measure([*command, "--overwrite", "--threads", str(threads)], part / "merge.log")
    return {"seconds": round(run.seconds, 2), "peak_bytes": run.peak_bytes}
