"""Fixed train, validation and test items of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.replication import hub
from benchmarks.replication.labels import numbered
from benchmarks.replication.rows import Rows, SuiteTask, seed_of
from benchmarks.replication.suite import Suite

__all__ = ["Split", "load", "split"]

SEED = 0
"""Of all splits. Never the seed of a run: validation and test are the same items for every seed."""


@dataclass(frozen=True)
class Split:
    """The items of one task; `classes` is 0 for a task that is scored."""

    task: str
    kind: str
    train: Rows
    validation: Rows
    test: Rows
    classes: int


def load(suite: Suite, folder: Path | None, tasks: Sequence[str] | None = None) -> dict[str, Split]:
    """Return task -> items, read from the folder of data, or from the Hub where there is none."""
    items = {}
    folder = folder or suite.data
    for name in tasks or suite.tasks:
        task = suite.known[name]
        pool, test = task.read(folder) if folder else hub.read(task, suite.domain.cell)
        items[name] = split(task, pool, test, suite)
    return items


def split(task: SuiteTask, pool: Rows, test: Rows, suite: Suite) -> Split:
    """Return the suite's numbers of items, drawn with a fixed seed.

    Rows of the pool whose input is in the test, or occurs twice, are left out. Where the pool is small,
    validation takes at most a third of it. Classes are numbered.
    """
    pool, test, names = numbered(task, pool, test)
    order = np.random.default_rng(seed_of(SEED, task.name))
    test = [test[i] for i in order.permutation(len(test))]
    inputs = {row[:2] for row in test}
    fresh = []
    for row in pool:
        if row[:2] not in inputs:
            inputs.add(row[:2])
            fresh.append(row)
    fresh = [fresh[i] for i in order.permutation(len(fresh))]
    validation = min(suite.validation, len(fresh) // 3)
    train = fresh[validation : validation + suite.most_train]
    seen_classes = {row[2] for row in train}
    if missing := [name for number, name in enumerate(names) if number not in seen_classes]:
        what = f"of {len(fresh)} different rows none of the classes {missing[:5]} is left to train on"
        raise SystemExit(f"{task.name}: {what}: give more rows, or join rare classes")
    return Split(task.name, task.kind, train, fresh[:validation], test[: suite.test], len(names))
