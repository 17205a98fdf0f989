"""The numbers of the suite continual-6, and where its models lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.replication.cache import Cache
from benchmarks.replication.continual.elastic import Elastic
from benchmarks.replication.continual.specialists import TaskTraining
from benchmarks.replication.continual.tasks import PARTS, TASKS, parts
from benchmarks.replication.multimodal.align import ProjectorAlignment
from benchmarks.replication.multimodal.reader import PromptRow
from benchmarks.replication.multimodal.suite import MULTIMODAL_3, Multimodal

__all__ = ["CONTINUAL_6", "ORDERS", "TRAININGS", "ContinualSuite"]

ORDERS = (
    ("fashion", "numbers", "shapes", "count", "signs", "photos"),
    ("photos", "signs", "count", "shapes", "numbers", "fashion"),
    ("shapes", "photos", "numbers", "fashion", "count", "signs"),
)
TRAININGS = ("individual", "sequential", "ewc", "joint")
"""An adapter of each task; one that learns all in a row, as it is or with a penalty (EWC); one of all."""
GRID = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.4, 2.0, 3.0)


@dataclass(frozen=True)
class ContinualSuite:
    """Everything that fixes the suite's results but the seed; every seed has an order of its own.

    `validation` and `test` are questions of each task, `samples` the unlabelled inputs of a task that merges
    may use. `multimodal` is the suite whose language model and vision encoder the base is made of, and
    `aligned_images` is of how many of its images the base's projector is aligned.
    """

    name: str = "continual-6"
    multimodal: Multimodal = MULTIMODAL_3
    aligned_images: int = 2000
    alignment: ProjectorAlignment = field(default_factory=ProjectorAlignment)
    training: TaskTraining = field(default_factory=TaskTraining)
    elastic: Elastic = field(default_factory=Elastic)
    trainings: tuple[str, ...] = TRAININGS
    orders: tuple[tuple[str, ...], ...] = ORDERS
    train_items: int = 1200
    validation: int = 30
    test: int = 100
    samples: int = 128
    grid: tuple[float, ...] = GRID

    @property
    def seeds(self) -> int:
        """Return how many orders there are."""
        return len(self.orders)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks, in the first order."""
        return self.orders[0]

    def fast(self) -> ContinualSuite:
        """Return a slice of it that runs in three minutes and says nothing about methods."""
        return replace(
            self,
            name=f"{self.name}-fast",
            multimodal=self.multimodal.fast(),
            aligned_images=200,
            alignment=replace(self.alignment, steps=20),
            training=replace(self.training, steps=5, alignment=replace(self.training.alignment, steps=20)),
            elastic=replace(self.elastic, samples=4),
            orders=tuple(order[:3] for order in self.orders),
            train_items=120,
            validation=10,
            test=20,
            samples=24,
            grid=(0.3, 1.0),
        )

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the results wants to know, under the names that results have."""
        return {
            "name": self.name,
            "orders": [list(order) for order in self.orders],
            "tasks": {name: TASKS[name].source for name in self.tasks},
            "training": self.training.config(),
            "elastic": self.elastic.config(),
            "train": self.train_items,
            "validation": self.validation,
            "test": self.test,
            "samples": self.samples,
            "grid": list(self.grid),
        }

    def rows(self, task: str, data: Path) -> dict[str, list[PromptRow]]:
        """Return part -> questions of a task."""
        sizes = dict(zip(PARTS, (self.train_items, self.validation, self.test), strict=True))
        return parts(TASKS[task], data, sizes)

    @staticmethod
    def base(cache: Cache) -> Path:
        """Return where the base of all tasks lies."""
        return cache.root / "base"

    @staticmethod
    def individual(cache: Cache, seed: int, task: str) -> Path:
        """Return the folder of a task's own adapter."""
        return cache.specialist(seed, "individual", task)

    def sequence(self, cache: Cache, seed: int, way: str) -> Sequence[Path]:
        """Return the folders of what learns one task after another; the first is the task's own adapter."""
        first, *others = self.orders[seed]
        later = [cache.specialist(seed, way, f"{i}-{task}") for i, task in enumerate(others, 1)]
        return [self.individual(cache, seed, first), *later]

    @staticmethod
    def joint(cache: Cache, seed: int) -> Path:
        """Return the folder of the adapter that is trained on all tasks."""
        return cache.root / f"seed{seed}" / "joint"


CONTINUAL_6 = ContinualSuite()
