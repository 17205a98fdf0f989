"""The numbers of the suite nli-6, and where its models lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.replication import methods, splits
from benchmarks.replication.cache import Cache
from benchmarks.replication.data import data_folder
from benchmarks.replication.methods import Merge
from benchmarks.replication.nli.rows import LEARNED, Learned
from benchmarks.replication.nli.tasks import KNOWN
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Training

__all__ = ["NLI_6", "Nli"]

TRAINING = Training(steps=200, rate=1e-3, rank=16, alpha=32, batch=8, warmup=10, decay=0.0)
METHODS = ("task_arithmetic", "ties", "dare_ties", "knots_ties", "tsv_m", "iso_c", "wudi", "ssam")
METHODS += ("many", "many_default")
"""Others of the bench's methods can be asked for."""


@dataclass(frozen=True)
class Nli:
    """Everything that fixes the suite's results but the seed.

    `screen` of the `validation` items a task are what scales are screened on. Adapters are saved at the
    steps `saved`, too. Of the tasks `observed` the null-space ratio is followed from step to step, at other
    `rates`, too; of the others that of the last step is measured. `inputs` is on how many texts a task.
    """

    name: str = "nli-6"
    tasks: tuple[str, ...] = ("sick", "snli", "scitail", "mnli", "qnli", "rte")
    training: Training = TRAINING
    saved: tuple[int, ...] = (25, 50, 100, 150)
    observed: tuple[str, ...] = ("sick", "snli")
    rates: tuple[float, ...] = (2e-4, 3e-3)
    observed_steps: int = 100
    inputs: int = 64
    learned: tuple[Learned, ...] = LEARNED
    always: tuple[str, ...] = ()
    seeds: int = 3
    most_train: int = 2000
    validation: int = 100
    screen: int = 30
    test: int = 200
    grid: tuple[float, ...] = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.4, 2.0)

    @property
    def trainings(self) -> dict[str, Training]:
        """Return kind -> training, of the adapters that are merged."""
        return {"lora": self.training}

    def fast(self) -> Nli:
        """Return a slice of it that runs in three minutes and says nothing about methods."""
        return replace(
            self,
            name=f"{self.name}-fast",
            tasks=("snli", "sick"),
            training=replace(self.training, steps=10, warmup=2),
            saved=(5,),
            observed=("sick",),
            rates=(),
            inputs=8,
            learned=tuple(replace(row, steps=2, inputs=8) for row in self.learned),
            always=("nsc",),
            validation=8,
            screen=0,
            test=8,
            grid=(0.3, 1.0),
        )

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the results wants to know."""
        numbers = ("name", "tasks", "saved", "observed", "rates", "observed_steps", "inputs")
        numbers += ("most_train", "validation", "screen", "test", "grid")
        return {name: getattr(self, name) for name in numbers} | {"training": self.training.config()}

    def read(self, tasks: Sequence[str] | None = None) -> dict[str, Split]:
        """Return task -> items, from the folder of data."""
        data = data_folder()
        tasks = self.tasks if tasks is None else tasks
        read = {task: KNOWN[task].read(data) for task in tasks}
        return {task: splits.split(KNOWN[task], *read[task], self) for task in tasks}

    def chosen(self, asked: Sequence[str] | None) -> list[str]:
        """Return the names of the rows that are asked for, with those that are `always` there."""
        usual = (*METHODS, *(row.name for row in self.learned))
        return list(dict.fromkeys(usual if asked is None else (*asked, *self.always)))

    def rows(self, names: Sequence[str]) -> list[Merge]:
        """Return the merges of these names."""
        return [*methods.rows("lora", names, self.training.rank), *methods.sequence_rows("lora", names)]

    def learned_rows(self, names: Sequence[str]) -> list[Learned]:
        """Return the merges of these names whose coefficients are learned."""
        return [row for row in self.learned if row.name in names]

    def adapter(self, cache: Cache, seed: int, task: str, training: Training | None = None) -> Path:
        """Return the folder of a trained adapter; of another training than the suite's, with its rate."""
        other = "" if training in (None, self.training) else f"-{training.rate:g}"
        return cache.specialist(seed, "lora", f"{task}{other}")

    def saved_in(self, training: Training) -> tuple[int, ...]:
        """Return the steps of a training, before its last, at which adapters are saved."""
        return tuple(step for step in self.saved if step < training.steps)

    def observations(self) -> Iterator[tuple[str, Training, tuple[int, ...]]]:
        """Yield the trainings whose adapters are measured: task, training, and the steps."""
        for task in self.tasks:
            before = self.saved_in(self.training) if task in self.observed else ()
            yield task, self.training, (*before, self.training.steps)
        for task in self.observed:
            for rate in self.rates:
                other = replace(self.training, rate=rate, steps=self.observed_steps)
                yield task, other, (*self.saved_in(other), other.steps)

    @staticmethod
    def observation(cache: Cache, task: str, training: Training) -> Path:
        """Return the folder of what was seen of a training of the first seed."""
        return cache.root / "observation" / f"{task}-{training.rate:g}"


NLI_6 = Nli()
