"""The suite continual-6: its numbers, and its steps train, merge and report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.replication.cache import Cache
from benchmarks.replication.continual import encoder, report
from benchmarks.replication.continual.encoder import View
from benchmarks.replication.continual.learn import learn
from benchmarks.replication.continual.merge import REFERENCES, RULES, Bench, Plan
from benchmarks.replication.continual.tasks import OTHER_SETS, TASKS
from benchmarks.replication.lm.fit import Tuning
from benchmarks.replication.lm.merging import merges
from benchmarks.replication.lm.school import PASS, School, teach
from benchmarks.replication.methods import Merge
from benchmarks.replication.steps import quiet, run_all, say

__all__ = ["CONTINUAL_6", "Continual"]

ORDERS = (
    ("mnist", "fashion", "easy-vqa", "notmnist", "kannada", "signs"),
    ("signs", "kannada", "notmnist", "easy-vqa", "fashion", "mnist"),
    ("easy-vqa", "mnist", "signs", "fashion", "kannada", "notmnist"),
)
GRID = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.4, 2.0)
TUNING = Tuning(rank=8, first=60, steps=160, rate=2e-3)


@dataclass(frozen=True)
class Continual:
    """Everything that fixes the suite's results but the seed; every seed has an order of its own.

    `validation` and `test` are questions of each task.
    """

    name: str = "continual-6"
    school: School = field(default_factory=School)
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

    def fast(self) -> Continual:
        """Return a slice of it that runs in three minutes and says nothing about methods."""
        return replace(
            self,
            name=f"{self.name}-fast",
            school=replace(self.school, steps=250, soft_steps=30),
            tuning=replace(self.tuning, first=10, steps=15),
            orders=tuple(order[:3] for order in self.orders),
            validation=20,
            test=40,
            encoder_steps=50,
            grid=(0.1, 0.3, 1.0),
            least=0.0,
            lm="lm-fast",
        )

    def train(self, cache: Cache, options: argparse.Namespace) -> None:
        """Teach LM and encoder, then train on each task, on all, and on one after another."""
        quiet(options.threads)
        data = os.environ.get("SUBMERGE_DATA")
        if data is None:
            raise SystemExit("no data: set SUBMERGE_DATA to the folder of data")
        teach(self.school, self.lm_folder(cache), say, self.least)
        encoder.teach(Path(data), cache.root / "encoder", self.encoder_steps)
        sizes = {"train": self.train_items, "validation": self.validation, "test": self.test}
        for task in TASKS:
            if task.name in self.orders[0]:
                place = cache.root / "tasks" / task.name
                encoder.look(task, Path(data), cache.root / "encoder", place, sizes)
        jobs = [(seed, what) for seed in range(options.seeds) for what in (*self.orders[seed], *_LONG)]
        run_all(_train_one, [(self, cache, options, *job) for job in jobs], options.jobs)

    def merge(self, cache: Cache, options: argparse.Namespace) -> None:
        """Score the references, and merge by every method."""
        run_all(_merge_one, [(self, cache, options, seed) for seed in range(options.seeds)], options.jobs)

    def report(self, cache: Cache, options: argparse.Namespace) -> None:
        """Write JSON, tables and pictures."""
        report.write(self, cache, options)

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the results wants to know."""
        return {
            "name": self.name,
            "orders": [list(order) for order in self.orders],
            "tasks": {task.name: task.source for task in TASKS},
            "encoder trained on": list(OTHER_SETS),
            "school": self.school.config(),
            "tuning": self.tuning.config(),
            "validation": self.validation,
            "test": self.test,
            "grid": list(self.grid),
        }

    def views(self, cache: Cache) -> dict[str, dict[str, View]]:
        """Return task -> part -> cached features and questions."""
        return {task: encoder.load(cache.root / "tasks" / task) for task in self.orders[0]}

    def rows(self, options: argparse.Namespace) -> list[Merge]:
        """Return the merges that are asked for; the average is always among them."""
        return merges(self.tuning.rank, options.methods)

    def lm_folder(self, cache: Cache) -> Path:
        """Return where the LM lies; other suites use it too."""
        return cache.root.with_name(self.lm)


CONTINUAL_6 = Continual()


def _train_one(suite: Continual, cache: Cache, options: argparse.Namespace, seed: int, what: str) -> None:
    quiet(options.threads)
    lm, views, folder = suite.lm_folder(cache), suite.views(cache), cache.root / f"seed{seed}"
    train = {task: view["train"] for task, view in views.items()}
    _LONG.get(what, _individual)(suite, lm, train, folder, seed, what)
    say(f"seed {seed} {what}: done")


def _individual(
    suite: Continual, lm: Path, train: dict[str, View], folder: Path, seed: int, task: str
) -> None:
    learn(lm, {task: train[task]}, folder / "individual" / task, suite.tuning, seed)


def _joint(suite: Continual, lm: Path, train: dict[str, View], folder: Path, seed: int, _: str) -> None:
    learn(lm, train, folder / "joint", suite.tuning, seed)


def _sequential(suite: Continual, lm: Path, train: dict[str, View], folder: Path, seed: int, _: str) -> None:
    before = None
    for i, task in enumerate(suite.orders[seed]):
        place = folder / "sequential" / f"{i}-{task}"
        learn(lm, {task: train[task]}, place, suite.tuning, seed, before)
        before = place


_LONG: dict[str, Callable[[Continual, Path, dict[str, View], Path, int, str], None]] = {
    "sequential": _sequential,
    "joint": _joint,
}
"""What is trained besides the individual models."""


def _merge_one(suite: Continual, cache: Cache, options: argparse.Namespace, seed: int) -> None:
    quiet(options.threads)
    plan = Plan(suite.grid, seed == 0, options.threads)
    folder = cache.root / f"seed{seed}"
    bench = Bench(suite.lm_folder(cache), suite.views(cache), folder, suite.orders[seed], plan, say)
    for name in REFERENCES:
        bench.reference(name)
    for row in suite.rows(options):
        for rule in RULES:
            bench.run(row, rule)
