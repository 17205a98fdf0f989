"""Merges that are exports of a state that grew by one task after another: LPM, by unlabelled inputs."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submerge
from benchmarks.process import measure
from benchmarks.replication.bench import Bench
from benchmarks.replication.cache import cached, timed
from benchmarks.replication.methods import MANY, Merge

__all__ = ["SequenceBench"]


class SequenceBench(Bench):
    """A bench whose rows of the method `many` need inputs of each task, of which no label is read."""

    samples = 64
    """Inputs of a task from which its moments are taken."""

    @property
    @abstractmethod
    def state(self) -> Path:
        """The folder of the state."""

    @abstractmethod
    def inputs(self, count: int) -> Mapping[str, Any]:
        """Return task -> so many inputs, as the library takes them, in the order of the models."""

    def merge(self, row: Merge, scale: float | None, part: Path, tasks: int | None = None) -> Path:
        """Merge the models, or the first `tasks`, at a scale; return the new folder."""
        if not _in_sequence(row):
            return super().merge(row, scale, part, tasks)
        out = part / "merged"
        asked = {} if scale is None else {"scale": scale}
        submerge.Continual(self._grown()).export(out, overwrite=True, **asked)
        return out

    def _grown(self) -> Path:
        """Return the state of all tasks; it is grown unless it is there."""

        def make(part: Path, measured: dict[str, Any]) -> None:
            state = submerge.Continual.begin(part / "state", str(self.base))
            for (task, inputs), model in zip(self.inputs(self.samples).items(), self.models, strict=True):
                with timed(measured, f"seconds_of_{task}"):
                    measured[f"warnings_of_{task}"] = state.add(task, str(model), inputs)

        cached(self.state, self.config({"samples": self.samples}), make)
        return self.state / "state"

    def given(self, row: Merge) -> dict[str, int]:
        """Return what decides about a row's result beside its own facts."""
        return {"samples": self.samples} if _in_sequence(row) else {}

    def _cost(self, part: Path, out: Path) -> dict[str, float]:
        if (part / "recipe.yaml").exists():  # which an export has not
            return super()._cost(part, out)
        command = [sys.executable, "-m", "submerge", "many", "export", str(self._grown()), "-o", str(out)]
        run = measure([*command, "--overwrite"], part / "merge.log")
        return {"seconds": round(run.seconds, 2), "peak_bytes": run.peak_bytes}


def _in_sequence(row: Merge) -> bool:
    return (row.method or row.name) == MANY.name
