"""Fixed train, validation and test items of a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.replication import hub
from benchmarks.replication.suite import CLASSES, Rows, Suite, Task, seed_of

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
    found = {}
    for name in tasks or suite.tasks:
        task = suite.known[name]
        pool, test = task.read(folder) if folder else hub.read(task, suite.domain.cell)
        found[name] = split(task, pool, test, suite)
    return found


def split(task: Task, pool: Rows, test: Rows, suite: Suite) -> Split:
    """Return the suite's numbers of items, drawn with a fixed seed.

    Rows of the pool whose input is in the test, or occurs twice, are left out. Where the pool is small,
    validation takes at most a third of it.
    """
    order = np.random.default_rng(seed_of(SEED, task.name))
    test = [test[i] for i in order.permutation(len(test))]
    seen = {row[:2] for row in test}
    fresh = []
    for row in pool:
        if row[:2] not in seen:
            seen.add(row[:2])
            fresh.append(row)
    fresh = [fresh[i] for i in order.permutation(len(fresh))]
    held = min(suite.validation, len(fresh) // 3)
    train = fresh[held : held + suite.most_train]
    classes = len(Counter(int(row[2]) for row in (*pool, *test))) if task.kind == CLASSES else 0
    return Split(task.name, task.kind, train, fresh[:held], test[: suite.test], classes)
