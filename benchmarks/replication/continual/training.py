"""What is trained: the base, an adapter of each task, one of all tasks, and one that learns them in a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.console import say
from benchmarks.replication.cache import Cache
from benchmarks.replication.continual.specialists import train, write_base
from benchmarks.replication.continual.suite import ContinualSuite
from benchmarks.replication.multimodal.bases import write_union
from benchmarks.replication.multimodal.inputs import images
from benchmarks.replication.multimodal.reader import PromptRow
from benchmarks.replication.multimodal.unions import PLACEHOLDERS

__all__ = ["TaskTrainer", "train_base"]


def train_base(suite: ContinualSuite, cache: Cache, data: Path) -> None:
    """Write the base: the multimodal suite's model with a new projector, aligned to words of its images."""
    origin = Cache(cache.root.parent, suite.multimodal.name)
    union = write_union(suite.multimodal, origin, "image", data)
    sets = images(data)
    each = suite.aligned_images // len(sets)
    rows = [
        PromptRow(PLACEHOLDERS["image"], {"image": [image]}, f" {word}")
        for kind in sets.values()
        for image, word in zip(kind["train"].inputs[:each], kind["train"].words, strict=False)
    ]
    write_base(union, rows, suite.base(cache), suite.alignment, say)


@dataclass(frozen=True)
class TaskTrainer:
    """Trains the adapters of one seed."""

    suite: ContinualSuite
    cache: Cache
    seed: int
    data: Path

    def train(self, what: str) -> None:
        """Train the adapter of a task, or `joint`, or those of `sequential` or `ewc`."""
        if what == "joint":
            self._joint()
        elif what in self.suite.trainings:
            self._sequence(what)
        else:
            self._individual(what)

    def _rows(self, task: str) -> dict[str, list[PromptRow]]:
        return {task: self.suite.rows(task, self.data)["train"]}

    def _individual(self, task: str) -> None:
        self._train(self._rows(task), self.suite.individual(self.cache, self.seed, task), task)

    def _joint(self) -> None:
        rows = {task: rows for name in self.suite.tasks for task, rows in self._rows(name).items()}
        self._train(rows, self.suite.joint(self.cache, self.seed), "joint")

    def _sequence(self, way: str) -> None:
        order, folders = self.suite.orders[self.seed], self.suite.sequence(self.cache, self.seed, way)
        self._individual(order[0])
        for i in range(1, len(order)):
            more: dict[str, Any] = {"start": folders[i - 1]}
            if way == "ewc":
                more |= {"elastic": self.suite.elastic, "last": self._rows(order[i - 1])[order[i - 1]]}
            self._train(self._rows(order[i]), folders[i], f"{way} {folders[i].name}", **more)

    def _train(self, rows: Mapping[str, list[PromptRow]], folder: Path, what: str, **more: Any) -> None:
        name, suite = f"seed {self.seed} {what}", self.suite
        more["say"] = lambda line: say(f"{name}: {line}")
        marker = train(suite.base(self.cache), rows, folder, suite.training, self.seed, **more)
        say(f"{name}: {marker['seconds']:.0f} s, loss {marker['losses'][-1]:.3f}")
