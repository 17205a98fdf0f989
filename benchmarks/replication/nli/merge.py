"""Merges the adapters of a seed by every method, as other suites do; the head of a task is its words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.console import Say, silent
from benchmarks.replication.bench import MergeOptions, Scores, weight_bytes
from benchmarks.replication.cache import Cache, Result, cached, timed, trained
from benchmarks.replication.merge import ScreenedBench
from benchmarks.replication.nli.model import Prompts, accuracy, load, word_ids
from benchmarks.replication.nli.suite import Nli

__all__ = ["REFERENCES", "NliBench"]

REFERENCES = ("base", "individual")
PARTS = ("validation", "test")


class NliBench(ScreenedBench):
    """The adapters of one seed."""

    def __init__(self, suite: Nli, cache: Cache, seed: int, options: MergeOptions, say: Say = silent) -> None:
        models = [suite.adapter(cache, seed, task) for task in suite.tasks]
        super().__init__(cache.base, models, "lora", options, say)
        self.suite, self.cache, self.seed, self.title = suite, cache, seed, f"seed {seed}"
        sizes = {"validation": suite.validation, "test": suite.test}
        self.facts = {"trained": trained(models, self.title), **sizes}
        self.splits = suite.read()
        self.answers = {task: word_ids(self.base, task) for task in suite.tasks}
        self._items: dict[tuple[str, str], Prompts] = {}
        self.individual = self._individual()

    def place(self, seed: int, row: str) -> Path:
        """Return the folder of a row's results."""
        return self.cache.result(seed, self.kind, row)

    def inputs(self, count: int) -> dict[str, Any]:
        """Return task -> batches of texts of its training set, as rows that learn have them."""
        prompts = {task: Prompts(self.splits[task].train[-count:], self.base) for task in self.suite.tasks}
        return {task: [items.batch(which) for which in items.batches()] for task, items in prompts.items()}

    def items(self, part: str, task: str) -> Prompts:
        """Return the prompts of a part of a task; those to screen on are the first of validation."""
        if (part, task) not in self._items:
            split = self.splits[task]
            rows = split.validation[: self.options.screen] if part == "screen" else getattr(split, part)
            self._items[part, task] = Prompts(rows, self.base)
        return self._items[part, task]

    def scores(self, folder: Path, part: str) -> Scores:
        """Return task -> accuracy of the model of a folder."""
        return self.scores_of(load(folder, self.base), part, self.suite.tasks)

    def scores_of(self, model: Any, part: str, tasks: Sequence[str]) -> Scores:
        """Return task -> accuracy of a model on some tasks."""
        return {task: accuracy(model, self.items(part, task), self.answers[task]) for task in tasks}

    def reference(self) -> Result:
        """Return the scores of the base."""

        def make(_: Path, result: Result) -> None:
            with timed(result, "seconds_in_all"):
                model = load(self.base, self.base)
                result |= {part: self.scores_of(model, part, self.suite.tasks) for part in PARTS}
            result["bytes"] = weight_bytes(self.base)

        return self._reference("base", make)

    def _individual(self) -> Result:
        def make(_: Path, result: Result) -> None:
            result |= {part: {} for part in PARTS}
            with timed(result, "seconds_in_all"):
                for task, folder in zip(self.suite.tasks, self.models, strict=True):
                    model = load(folder, self.base)
                    for part in PARTS:
                        result[part] |= self.scores_of(model, part, [task])
            result["bytes"] = sum(map(weight_bytes, self.models))

        return self._reference("individual", make)

    def _reference(self, name: str, make: Any) -> Result:
        result = cached(self.place(self.seed, name), self.config({"reference": name}), make)
        mean = sum(result["test"].values()) / len(result["test"])
        self.say(f"{self.title} {name}: accuracy {mean:.3f}")
        return result
