"""Merges the specialists of a seed by every method, tunes each on validation, reads the test once."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submerge
from benchmarks.replication import cache as store
from benchmarks.replication import parity
from benchmarks.replication.cache import Cache
from benchmarks.replication.ceilings import ceilings
from benchmarks.replication.methods import Merge
from benchmarks.replication.scores import Scorer, summary
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Suite
from benchmarks.replication.train import load_heads
from benchmarks.replication.tune import tune
from benchmarks.speed.measure import measure

__all__ = ["Bench", "Plan", "everything", "size"]


@dataclass(frozen=True)
class Plan:
    """What is merged and how it is measured; `screen` 0 scores every scale on all validation items.

    With `costs`, the chosen merge is done once more as a process, for its time and its peak memory; with
    `peers`, mergekit and PEFT do it too where they carry the method.
    """

    grid: tuple[float, ...]
    screen: int = 50
    costs: bool = True
    peers: bool = True
    device: str = "cpu"
    threads: int = 1


class Bench:
    """The specialists of one seed and one kind, full or lora, and their ceilings."""

    def __init__(
        self,
        suite: Suite,
        cache: Cache,
        splits: Mapping[str, Split],
        kind: str,
        seed: int,
        plan: Plan,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.suite, self.cache, self.kind, self.seed, self.plan, self.say = (
            suite,
            cache,
            kind,
            seed,
            plan,
            say,
        )
        self.settings = submerge.Settings(threads=plan.threads, max_memory=16_000_000_000)
        self.models = [cache.specialist(seed, kind, task) for task in splits]
        markers = [store.read(model) for model in self.models]
        if missing := [model.name for model, found in zip(self.models, markers, strict=True) if not found]:
            raise SystemExit(
                f"not trained yet: {', '.join(missing)} ({kind}, seed {seed}) — run `train` first"
            )
        self.trained = [marker["config"] for marker in markers if marker]
        heads = load_heads(suite, cache, splits, seed)
        self.scorer = Scorer(suite.domain, splits, heads, cache.base, plan.screen)
        self.ceilings = ceilings(
            suite, cache, splits, self.scorer, kind, seed, self._config({}), self.settings, plan.device
        )
        self.individual = self.ceilings["individual"]

    def _config(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"row": row, "trained": self.trained, "router_shots": self.suite.router_shots}

    def run(self, row: Merge) -> dict[str, Any]:
        """Return everything about one method: from the cache, or by tuning and testing it."""
        folder = self.cache.result(self.seed, self.kind, row.name)
        grid = (*self.plan.grid, *row.higher) if row.factor else ()
        facts = row.facts() | {"grid": list(grid), "screen": self.plan.screen}
        config = self._config(facts)
        if (found := store.done(folder, config)) is not None:
            return found
        with store.write_whole(folder, config) as (part, result):
            started = time.perf_counter()
            scale = self._tune(row, grid, part, result)
            out = self._merge(row, part, scale)
            result["test"] = self.scorer.scores(self._load(out), "test")
            result["bytes"] = size(out)
            result["seconds_in_all"] = round(time.perf_counter() - started, 2)
            if self.plan.costs:
                result["cost"] = self._cost(part, out)
            if self.plan.peers:
                result["parity"] = parity.rows(row, self, scale, part)
            shutil.rmtree(out)
        tested = summary(result["test"], self.individual["test"])
        self.say(
            f"{self.kind} seed {self.seed} {row.name}: {tested['mean']:.3f}, worst {tested['worst']:.3f}"
        )
        found = store.read(folder)
        assert found is not None
        return found

    def _tune(self, row: Merge, grid: Sequence[float], part: Path, result: dict[str, Any]) -> float | None:
        seen: dict[str, dict[str, float]] = {}

        def score(where: str, scale: float | None) -> float:
            out = self._merge(row, part, scale)
            scores = self.scorer.scores(self._load(out), where)
            if where == "validation":
                seen[str(scale)] = scores
            # screened items are validation items: the individual's validation scores serve both
            return float(summary(scores, self.individual["validation"])["mean"])

        if not row.factor:
            score("validation", None)
            result["validation"] = seen["None"]
            return None
        screen = (lambda scale: score("screen", scale)) if self.plan.screen else None
        first = store.read(self.cache.result(0, self.kind, row.name)) if self.seed else None
        near = first["scale"] if first else None
        choice = tune(grid, lambda scale: score("validation", scale), screen, near=near)
        result |= {"scale": choice.scale, "at_end": choice.at_end, "validation": seen[str(choice.scale)]}
        result["curve"] = {"screen": choice.screened, "validation": choice.scored}
        return choice.scale

    def _merge(self, row: Merge, part: Path, scale: float | None) -> Path:
        """Write the recipe beside the result, and merge by it."""
        recipe = row.write(part / "recipe.yaml", self.cache.base, self.models, scale, self.kind)
        out = part / "merged"
        submerge.merge(recipe, out, settings=self.settings, overwrite=True)
        return out

    def _load(self, folder: Path) -> Any:
        return self.suite.domain.load(folder, self.cache.base, self.plan.device)

    def _cost(self, part: Path, out: Path) -> dict[str, float]:
        command = [sys.executable, "-m", "submerge", "merge", str(part / "recipe.yaml"), "-o", str(out)]
        run = measure([*command, "--overwrite", "--threads", str(self.plan.threads)], part / "merge.log")
        return {"seconds": round(run.seconds, 2), "peak_bytes": run.peak_bytes}


def size(folder: Path) -> int:
    """Return the bytes of a folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def everything(bench: Bench, rows: Sequence[Merge]) -> dict[str, dict[str, Any]]:
    """Return name -> result of all rows."""
    return {row.name: bench.run(row) for row in rows}
