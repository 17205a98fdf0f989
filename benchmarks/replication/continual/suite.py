"""The numbers of the suite continual-6, and where its models lie."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.replication.cache import Cache
from benchmarks.replication.continual import encoder
from benchmarks.replication.continual.encoder import EncodedPart
from benchmarks.replication.continual.tasks import OTHER_SETS, TASKS
from benchmarks.replication.lm.fit import Tuning
from benchmarks.replication.lm.pretrain import PASS, TextPretraining
from benchmarks.replication.methods import Merge, adapter_rows

__all__ = ["CONTINUAL_6", "ORDERS", "ContinualSuite"]

ORDERS = (
    ("mnist", "fashion", "easy-vqa", "notmnist", "kannada", "signs"),
    ("signs", "kannada", "notmnist", "easy-vqa", "fashion", "mnist"),
    ("easy-vqa", "mnist", "signs", "fashion", "kannada", "notmnist"),
)
GRID = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.4, 2.0)
TUNING = Tuning(rank=8, first=60, steps=160, rate=2e-3)


@dataclass(frozen=True)
class ContinualSuite:
    """Everything that fixes the suite's results but the seed; every seed has an order of its own.

    `validation` and `test` are questions of each task.
    """

    name: str = "continual-6"
    pretraining: TextPretraining = field(default_factory=TextPretraining)
    tuning: Tuning = TUNING
    trainings: tuple[str, ...] = ()
    orders: tuple[tuple[str, ...], ...] = ORDERS
    train_items: int = 2000
    validation: int = 60
    test: int = 300
    encoder_steps: int = 800
    grid: tuple[float, ...] = GRID
    least: float = PASS
    lm: str = "lm"

    @property
    def seeds(self) -> int:
        """Return how many orders there are."""
        return len(self.orders)

    def fast(self) -> ContinualSuite:
        """Return a slice of it that runs in three minutes and says nothing about methods."""
        return replace(
            self,
            name=f"{self.name}-fast",
            pretraining=replace(self.pretraining, steps=250, soft_steps=30),
            tuning=replace(self.tuning, first=10, steps=15),
            orders=tuple(order[:3] for order in self.orders),
            validation=20,
            test=40,
            encoder_steps=50,
            grid=(0.1, 0.3, 1.0),
            least=0.0,
            lm="lm-fast",
        )

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the results wants to know, under the names that results have."""
        return {
            "name": self.name,
            "orders": [list(order) for order in self.orders],
            "tasks": {task.name: task.source for task in TASKS},
            "encoder trained on": list(OTHER_SETS),
            "school": self.pretraining.config(),
            "tuning": self.tuning.config(),
            "validation": self.validation,
            "test": self.test,
            "grid": list(self.grid),
        }

    def parts(self, cache: Cache) -> dict[str, dict[str, EncodedPart]]:
        """Return task -> part -> cached features and questions."""
        return {task: encoder.load(self.task_folder(cache, task)) for task in self.orders[0]}

    def rows(self, options: argparse.Namespace) -> list[Merge]:
        """Return the merges that are asked for; the average is always among them."""
        return adapter_rows(self.tuning.rank, options.methods)

    def lm_folder(self, cache: Cache) -> Path:
        """Return where the LM lies; other suites use it too."""
        return cache.root.with_name(self.lm)

    @staticmethod
    def task_folder(cache: Cache, task: str) -> Path:
        """Return where a task's features and questions lie."""
        return cache.root / "tasks" / task


CONTINUAL_6 = ContinualSuite()
