"""Merges the specialists of a seed by every method, tunes each on validation, reads the test once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.console import Say, silent
from benchmarks.replication import cache as store
from benchmarks.replication.bench import MergeOptions, Scores
from benchmarks.replication.cache import Result
from benchmarks.replication.calibrated import Calibrated, calibrate
from benchmarks.replication.ceilings import ceilings
from benchmarks.replication.methods import Merge
from benchmarks.replication.parity import Peers
from benchmarks.replication.scores import Scorer, summary
from benchmarks.replication.sequence import SequenceBench
from benchmarks.replication.specialists import MEMORY, Specialists
from benchmarks.replication.tune import tune

__all__ = ["ScreenedBench", "SuiteBench"]


class ScreenedBench(SequenceBench):
    """A model of each task: scales are screened on some validation items, and the best chosen on all.

    `individual` has part -> task -> score of the task's own model, `title` names kind and seed.
    """

    individual: Mapping[str, Any]
    title: str
    seed: int

    @property
    def state(self) -> Path:
        return self.place(self.seed, "state")

    @abstractmethod
    def place(self, seed: int, row: str) -> Path:
        """Return the folder of a row's results."""

    @abstractmethod
    def scores(self, folder: Path, part: str) -> Scores:
        """Return task -> score of a merged model on a part: "screen", "validation" or "test"."""

    def prepare(self, row: Merge, part: Path, result: Result) -> None:
        """Write what a row's recipe needs beside it."""

    def beside(self, row: Merge, part: Path, result: Result) -> None:
        """Measure what else is wanted of a row."""

    def grid(self, row: Merge) -> tuple[float, ...]:
        """Return the scales that are tried for a row, higher ones too where it asks for them."""
        return (*self.options.grid, *row.higher) if row.factor else ()

    def run(self, row: Merge) -> Result:
        """Return everything about one method: from the cache, or by tuning and testing it."""

        def tune_and_test(part: Path, result: Result) -> Path:
            self.prepare(row, part, result)
            scale = self._tune(row, part, result)
            out = self.merge(row, scale, part)
            result["test"] = self.scores(out, "test")
            return out

        facts = row.facts() | {"grid": list(self.grid(row)), "screen": self.options.screen} | self.given(row)
        place, line = self.place(self.seed, row.name), lambda result: self.line(row.name, result)
        return self.measured(
            place, facts, tune_and_test, line, lambda part, result: self.beside(row, part, result)
        )

    def line(self, name: str, result: Result) -> str:
        """Return what is said of a finished row."""
        tested = summary(result["test"], self.individual["test"])
        return f"{self.title} {name}: {tested['mean']:.3f}, worst {tested['worst']:.3f}"

    def _tune(self, row: Merge, part: Path, result: Result) -> float | None:
        scored: dict[float | None, Scores] = {}

        def score(where: str, scale: float | None) -> float:
            scores = self.scores(self.merge(row, scale, part), where)
            if where == "validation":
                scored[scale] = scores
            # screened items are validation items: the individual's validation scores serve both
            return float(summary(scores, self.individual["validation"])["mean"])

        if not row.factor:
            score("validation", None)
            result["validation"] = scored[None]
            return None
        screen = (lambda scale: score("screen", scale)) if self.options.screen else None
        near = self._scale_of_first_seed(row)
        choice = tune(self.grid(row), lambda scale: score("validation", scale), screen, near=near)
        result |= {"scale": choice.scale, "at_end": choice.at_end, "validation": scored[choice.scale]}
        result["curve"] = {"screen": choice.screened, "validation": choice.scored}
        return choice.scale

    def _scale_of_first_seed(self, row: Merge) -> float | None:
        first = store.read(self.place(0, row.name)) if self.seed else None
        return first["scale"] if first else None


class SuiteBench(ScreenedBench):
    """The specialists of one seed and one kind, full or lora, and their ceilings."""

    memory = MEMORY

    def __init__(self, specialists: Specialists, options: MergeOptions, say: Say = silent) -> None:
        cache, kind = specialists.cache, specialists.kind
        super().__init__(cache.base, specialists.models, kind, options, say)
        self.specialists, self.seed = specialists, specialists.seed
        self.title = f"{kind} seed {self.seed}"
        self.facts = {"trained": specialists.trained, "router_shots": specialists.suite.router_shots}
        self.scorer = Scorer(
            specialists.domain, specialists.splits, specialists.heads, cache.base, options.screen
        )
        self.ceilings = ceilings(specialists, self.scorer, self.config({}), options.threads, options.device)
        self.individual = self.ceilings["individual"]
        self.peers = Peers(specialists, self.scorer, options.device)

    def place(self, seed: int, row: str) -> Path:
        """Return the folder of a row's results, of this kind."""
        return self.specialists.cache.result(seed, self.kind, row)

    def inputs(self, count: int) -> dict[str, Any]:
        """Return task -> batches of its first validation items, as rows that learn have them."""
        return {task: self.specialists.batches(task, count) for task in self.specialists.tasks}

    def prepare(self, row: Merge, part: Path, result: Result) -> None:
        """Learn the coefficients of a row that has such."""
        if isinstance(row, Calibrated):
            result["calibration"] = calibrate(row, self.specialists, row.file(part))

    def beside(self, row: Merge, part: Path, result: Result) -> None:
        """Let mergekit and PEFT do the merge, where they are wanted."""
        if self.options.peers:
            result["parity"] = self.peers.merge(row, result.get("scale"), part)

    def scores(self, folder: Path, part: str) -> Scores:
        """Return task -> score of a merged model on a part."""
        model: Any = self.specialists.load(folder, self.options.device)
        return self.scorer.scores(model, part)
