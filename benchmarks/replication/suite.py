"""What a suite is: tasks with rows of one domain, a base, and the numbers that its trainings use."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.replication.encoder import Domain

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
    "Task",
    "Training",
    "seed_of",
]

CLASSES, SCORE, DENSE = "classes", "score", "dense"
"""Kinds of task: one class out of several, told by accuracy; a number in [0, 1], told by Pearson's r; such a
number for every place of the input, told by Pearson's r over all of them."""

Row = tuple[str | bytes, str | None, str | int | float | bytes]
"""A sentence, a second one or None; or the bytes of a picture and None. Then the class, the score in [0, 1],
or 0 or 1 for every pixel."""
Rows = list[Row]


PARQUET = "refs/convert/parquet"
"""The Hub's own conversion, for sets that come as a script."""


@dataclass(frozen=True)
class HubSet:
    """The Hugging Face data set that a task stands for, and which of its columns are read.

    `scale` turns the label into the score in [0, 1]: (label − scale[0]) / (scale[1] − scale[0]).
    """

    repo: str
    columns: tuple[str, ...]
    label: str
    train: str = "train"
    test: str = "test"
    config: str | None = None
    revision: str | None = None
    scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class Task:
    """A name, how its rows are read from the folder of data, and the set on the Hub that it stands for.

    `hub` is None where there is no such set that would give the same task. Labels of classes may be texts or
    any whole numbers.
    """

    name: str
    read: Callable[[Path], tuple[Rows, Rows]]
    hub: HubSet | None = None
    kind: str = CLASSES


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
    `known` tasks can be asked for; `tasks` are taken where nothing is said. A suite that is part of a `whole`
    takes heads and specialists from it, so that several parts share them. `fast_tasks` and `fast_base` are
    for `--fast`, `data` is the folder of data where SUBMERGE_DATA names none.
    """

    name: str
    known: Mapping[str, Task]
    tasks: tuple[str, ...]
    trainings: Mapping[str, Training]
    base: Base
    domain: Domain
    whole: Suite | None = None
    seeds: int = 3
    most_train: int = 2000
    validation: int = 300
    test: int = 500
    shots: int = 10
    generic: int = 100
    head_scale: float = 20.0
    router_shots: int = 50
    fast_tasks: tuple[str, ...] = ()
    fast_base: Base | None = None
    data: Path | None = None

    def cut(self, **changes: Any) -> Suite:
        """Return the suite with some values changed."""
        return replace(self, **changes)

    def part(self, name: str, tasks: tuple[str, ...]) -> Suite:
        """Return a suite of some of the tasks, which uses this one's heads and specialists."""
        return self.cut(name=name, tasks=tasks, whole=self)

    def alone(self, name: str, tasks: tuple[str, ...]) -> Suite:
        """Return a suite of any known tasks, with heads and specialists of its own."""
        return self.cut(name=name, tasks=tasks, whole=None)

    @property
    def home(self) -> Suite:
        """Return the suite whose heads and specialists this one uses."""
        return self.whole or self

    @property
    def places(self) -> tuple[str, str, str]:
        """Return the names of the folders of its results, of its heads and specialists, and of its base."""
        return self.name, self.home.name, self.base.home or self.name

    def facts(self) -> dict[str, Any]:
        """Return what decides about results besides a training: part of every marker."""
        names = ("name", "most_train", "validation", "test", "shots", "generic", "head_scale")
        found = {name: getattr(self, name) for name in names} | {"tasks": list(self.tasks)}
        return found | self.domain.facts() | ({"base": dict(self.base.facts)} if self.base.facts else {})


def seed_of(*parts: object) -> int:
    """Return a seed that depends on the parts and on nothing else, so that every task draws its own."""
    return zlib.crc32("/".join(map(str, parts)).encode())
