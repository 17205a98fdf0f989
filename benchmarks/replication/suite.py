"""What a suite is: tasks with rows of one domain, a base, and the numbers that its trainings use.

Suites of one's own take all names that they need from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.replication.encoder import Domain
from benchmarks.replication.rows import CLASSES, DENSE, PARQUET, SCORE, HubSet, Row, Rows, SuiteTask, seed_of

__all__ = [
    "CLASSES",
    "DENSE",
    "PARQUET",
    "SCORE",
    "Base",
    "HubSet",
    "Row",
    "Rows",
    "Suite",
    "SuiteTask",
    "Task",
    "Training",
    "seed_of",
]

Task = SuiteTask
"""The name in suites of one's own that were written before."""


@dataclass(frozen=True)
class Base:
    """How the base is written; suites that share one name its `home`, else each has its own.

    `facts` are what decides about its weights, where that can change.
    """

    write: Callable[[Path], None]
    home: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


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
    `known` tasks can be asked for; `tasks` are taken where nothing is said. A suite that is `part_of` another
    takes heads and specialists from it, so that several parts share them. `observed` are tasks whose adapters
    are followed while they are trained, at the rate of the others times each of `paces`. `fast_tasks` and
    `fast_base` are for `--fast`, `data` is the folder of data where SUBMERGE_DATA names none.
    """

    name: str
    known: Mapping[str, SuiteTask]
    tasks: tuple[str, ...]
    trainings: Mapping[str, Training]
    base: Base
    domain: Domain
    part_of: Suite | None = None
    seeds: int = 3
    most_train: int = 2000
    validation: int = 300
    test: int = 500
    shots: int = 10
    generic: int = 100
    head_scale: float = 20.0
    router_shots: int = 50
    observed: tuple[str, ...] = ()
    paces: tuple[float, ...] = (0.2, 1.0, 3.0)
    fast_tasks: tuple[str, ...] = ()
    fast_base: Base | None = None
    data: Path | None = None

    def cut(self, **changes: Any) -> Suite:
        """Return the suite with some values changed."""
        return replace(self, **changes)

    def part(self, name: str, tasks: tuple[str, ...]) -> Suite:
        """Return a suite of some of the tasks, which uses this one's heads and specialists."""
        return self.cut(name=name, tasks=tasks, part_of=self)

    def alone(self, name: str, tasks: tuple[str, ...]) -> Suite:
        """Return a suite of any known tasks, with heads and specialists of its own."""
        return self.cut(name=name, tasks=tasks, part_of=None)

    @property
    def home(self) -> Suite:
        """Return the suite whose heads and specialists this one uses."""
        return self.part_of or self

    @property
    def places(self) -> tuple[str, str, str]:
        """Return the names of the folders of its results, of its heads and specialists, and of its base."""
        return self.name, self.home.name, self.base.home or self.name

    def facts(self) -> dict[str, Any]:
        """Return what decides about results besides a training: part of every marker."""
        names = ("name", "most_train", "validation", "test", "shots", "generic", "head_scale")
        facts = {name: getattr(self, name) for name in names} | {"tasks": list(self.tasks)}
        return facts | self.domain.facts() | ({"base": dict(self.base.facts)} if self.base.facts else {})
