"""What a suite is: tasks with rows, a base, and the numbers that its trainings use."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["CLASSES", "SCORE", "HubSet", "Row", "Rows", "Suite", "Task", "Training", "seed_of"]

CLASSES, SCORE = "classes", "score"
"""Kinds of task: one class out of several, told by accuracy; a number in [0, 1], told by Pearson's r."""

Row = tuple[str, str | None, int | float]
"""A sentence, a second one or None, and the class, or the score in [0, 1]."""
Rows = list[Row]


@dataclass(frozen=True)
class HubSet:
    """The Hugging Face data set that a task stands for, and which of its columns are read.

    `scale` turns the label into the score in [0, 1]: (label − scale[0]) / (scale[1] − scale[0]).
    """

    repo: str
    texts: tuple[str, ...]
    label: str
    train: str = "train"
    test: str = "test"
    config: str | None = None
    revision: str | None = None
    scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class Task:
    """A name, how its rows are read from the folder of data, and the set on the Hub that it stands for."""

    name: str
    read: Callable[[Path], tuple[Rows, Rows]]
    hub: HubSet
    kind: str = CLASSES


@dataclass(frozen=True)
class Training:
    """How a specialist is trained. `rank` 0 is a full fine-tune."""

    steps: int
    rate: float
    rank: int = 0
    alpha: int = 0
    batch: int = 16
    warmup: int = 20
    decay: float = 0.01
    clip: float = 1.0

    def config(self) -> dict[str, Any]:
        """Return all numbers, for a marker or a report."""
        return asdict(self)


@dataclass(frozen=True)
class Suite:
    """Everything that fixes a suite's results but the seed.

    `most_train`, `validation` and `test` are items a task; `shots` are examples a class for the frozen heads.
    `known` tasks can be asked for; `tasks` are taken where nothing is said.
    """

    name: str
    known: Mapping[str, Task]
    tasks: tuple[str, ...]
    trainings: Mapping[str, Training]
    base: Callable[[Path], None]
    seeds: int = 3
    max_tokens: int = 48
    most_train: int = 2000
    validation: int = 300
    test: int = 500
    shots: int = 10
    generic: int = 100
    head_scale: float = 20.0
    router_shots: int = 50
    grids: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def cut(self, **changes: Any) -> Suite:
        """Return the suite with some values changed."""
        return replace(self, **changes)

    def facts(self) -> dict[str, Any]:
        """Return what decides about results besides a training: part of every marker."""
        names = ("name", "tasks", "max_tokens", "most_train", "validation", "test", "shots", "generic")
        return {name: getattr(self, name) for name in (*names, "head_scale")} | {"tasks": list(self.tasks)}


def seed_of(*parts: object) -> int:
    """Return a seed that depends on the parts and on nothing else, so that every task draws its own."""
    return zlib.crc32("/".join(map(str, parts)).encode())
