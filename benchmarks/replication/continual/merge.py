"""Merges what was learnt of each task, and follows it from the first task to the last.

The LoRAs are merged by every method. Which projector reads an image is a rule of its own: the plain average
of the projectors, or the task's own one, which needs to know the task.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch
from torch import nn

from benchmarks.replication import cache as store
from benchmarks.replication.continual.encoder import View
from benchmarks.replication.continual.learn import LANGUAGE, Projector, batch, projector
from benchmarks.replication.lm import school
from benchmarks.replication.lm.merging import choose, cost, merge
from benchmarks.replication.lm.streams import Path, Reader
from benchmarks.replication.lm.updates import Updates, adapter, dense
from benchmarks.replication.merge import size
from benchmarks.replication.methods import Merge

__all__ = ["REFERENCES", "RULES", "Bench", "Plan", "final", "forgetting"]

REFERENCES = ("individual", "joint", "sequential")
AT_ONCE = 300
Steps = list[dict[str, float]]
"""After each task: task -> accuracy, for the tasks so far."""


def _average(some: Sequence[Projector], _: int) -> nn.Module:
    states = [one.state_dict() for one in some]
    mean = Projector(some[0].place.shape[1])
    mean.load_state_dict({key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]})
    return mean


def _own(some: Sequence[Projector], task: int) -> nn.Module:
    return some[task]


RULES: dict[str, Callable[[Sequence[Projector], int], nn.Module]] = {"average": _average, "own": _own}
"""Projectors of the tasks so far, and the number of the task that is asked about -> what reads the image.

A rule that mixes projectors by the image (CPM) is a further row: it ignores the number of the task.
"""


@dataclass(frozen=True)
class Plan:
    """Scales that are tried; with `costs`, merges are timed as processes, too."""

    grid: tuple[float, ...]
    costs: bool = True
    threads: int = 1


class Bench:
    """One seed: its order of tasks, and what was learnt of each."""

    def __init__(
        self,
        lm: Folder,
        views: Mapping[str, Mapping[str, View]],
        seed_folder: Folder,
        order: Sequence[str],
        plan: Plan,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.lm, self.order, self.plan, self.say = lm, list(order), plan, say
        self.folder = seed_folder
        self.models = [seed_folder / "individual" / task for task in order]
        markers = [store.read(one) for one in (*self.models, *self.sequence(), seed_folder / "joint")]
        if not all(markers):
            raise SystemExit(f"not trained yet: {seed_folder.name} — run `train` first")
        self.trained = [marker["config"] for marker in markers if marker]
        self.projectors = [projector(one) for one in self.models]
        self.reader = Reader(school.load(lm), {})
        self._merged: dict[tuple[float | None, int], Updates] = {}
        self._merged_by: Merge | None = None
        self.batches = {
            (task, part): [
                batch(views[task][part].asked[at : at + AT_ONCE], views[task][part].features)
                for at in range(0, len(views[task][part].asked), AT_ONCE)
            ]
            for task in order
            for part in ("validation", "test")
        }

    def sequence(self) -> list[Folder]:
        """Return the folders of the model that learns one task after another."""
        return [self.folder / "sequential" / f"{i}-{task}" for i, task in enumerate(self.order)]

    def accuracy(self, task: str, part: str, language: Updates, reads: nn.Module) -> float:
        """Return the share of a task's questions that are answered rightly."""
        self.reader.projectors, self.reader.paths = {"image": reads}, [Path(language)]
        right = [self.reader.right(one) for one in self.batches[task, part]]
        return torch.cat(right).double().mean().item()

    def _scores(self, part: str, language: Updates, rule: str, tasks: int) -> dict[str, float]:
        """Return task -> accuracy of a merge of the first `tasks`, on these."""
        some = self.projectors[:tasks]
        return {
            task: self.accuracy(task, part, language, RULES[rule](some, i))
            for i, task in enumerate(self.order[:tasks])
        }

    def _config(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"row": row, "order": self.order, "trained": self.trained}

    def reference(self, name: str) -> dict[str, Any]:
        """Return the test scores of what is no merge: individual models, joint or sequential training."""
        folder, config = self.folder / "results" / name, self._config({"reference": name})
        if (found := store.done(folder, config)) is None:
            with store.write_whole(folder, config) as (_, result):
                result["steps"] = self._reference(name)
            found = store.read(folder)
        assert found is not None
        return found

    def _reference(self, name: str) -> Steps:
        def scores(folder: Folder, tasks: Sequence[str]) -> dict[str, float]:
            language, reads = adapter(folder / LANGUAGE), projector(folder)
            return {task: self.accuracy(task, "test", language, reads) for task in tasks}

        if name == "joint":
            return [scores(self.folder / "joint", self.order)]
        if name == "sequential":
            return [scores(one, self.order[: i + 1]) for i, one in enumerate(self.sequence())]
        found: dict[str, float] = {}
        for folder, task in zip(self.models, self.order, strict=True):
            found |= scores(folder, [task])
        return [found]

    def run(self, row: Merge, rule: str) -> dict[str, Any]:
        """Return everything about one method and one rule: from the cache, or by tuning and testing it.

        The scale is chosen for all tasks, and taken after each of them.
        """
        folder = self.folder / "results" / f"{row.name}-{rule}"
        facts = row.facts() | {"rule": rule, "grid": list(self.plan.grid) if row.factor else []}
        config = self._config(facts)
        if (found := store.done(folder, config)) is not None:
            return found
        with store.write_whole(folder, config) as (part, result):
            started = time.perf_counter()

            def scores(scale: float | None) -> dict[str, float]:
                language = self._language(row, scale, part, len(self.order))
                return self._scores("validation", language, rule, len(self.order))

            result |= choose(
                row, self.plan.grid, scores, lambda some: {"mean": sum(some.values()) / len(some)}
            )
            scale = result.get("scale")
            result["steps"] = [self._scores("test", adapter(self.models[0] / LANGUAGE), rule, 1)]
            for tasks in range(2, len(self.order) + 1):
                language = self._language(row, scale, part, tasks)
                result["steps"].append(self._scores("test", language, rule, tasks))
            result["seconds_in_all"] = round(time.perf_counter() - started, 2)
            out = self._merge(row, scale, part)
            result["bytes"] = size(out)
            if self.plan.costs:
                result["cost"] = cost(part, out, self.plan.threads)
            shutil.rmtree(out)
        found = store.read(folder)
        assert found is not None
        self.say(f"{self.folder.name} {row.name}, {rule} projector: {100 * final(found['steps']):.1f}")
        return found

    def _merge(self, row: Merge, scale: float | None, part: Folder, tasks: int | None = None) -> Folder:
        """Return the folder of the merged LoRA of the first tasks, or of all."""
        models = [folder / LANGUAGE for folder in self.models[:tasks]]
        return merge(row, self.lm, models, scale, part, self.plan.threads)

    def _language(self, row: Merge, scale: float | None, part: Folder, tasks: int) -> Updates:
        """Return the merged LoRA of the first tasks; the rules for projectors share it."""
        if self._merged_by != row:
            self._merged, self._merged_by = {}, row
        if (scale, tasks) not in self._merged:
            self._merged[scale, tasks] = dense(self._merge(row, scale, part, tasks), self.reader.lm)
        return self._merged[scale, tasks]


def final(steps: Steps) -> float:
    """Return the mean accuracy after the last task (FAA)."""
    return sum(steps[-1].values()) / len(steps[-1])


def forgetting(steps: Steps) -> float | None:
    """Return how much was lost since each task was best (FFM): the mean over all but the last task."""
    if len(steps) < 2:
        return None
    lost = [
        max(step[task] for step in steps[:-1] if task in step) - steps[-1][task]
        for task in steps[-1]
        if task in steps[-2]
    ]
    return sum(lost) / len(lost)
