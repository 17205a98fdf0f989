"""States to which the tasks of a seed are added one after another (`submerge many`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submerge
from benchmarks.replication.cache import Result, cached, timed, trained
from benchmarks.replication.continual.scores import TaskScorer

__all__ = ["GrownStates"]

STATE, FEWER = "state", "fewer"


class GrownStates:
    """The states of one seed, by how they are begun; each is grown once, with all tasks."""

    def __init__(self, base: Path, adapters: Mapping[str, Path], scorer: TaskScorer, folder: Path) -> None:
        self.base, self.adapters, self.scorer, self.folder = base, adapters, scorer, folder

    def of(self, begin: Mapping[str, Any], tasks: Sequence[str]) -> submerge.Continual:
        """Return a state of these tasks; others are removed from a copy."""
        grown = self._grown(begin)
        if set(tasks) == set(self.adapters):
            return submerge.Continual(grown / STATE)
        fewer = grown / FEWER
        shutil.rmtree(fewer, ignore_errors=True)
        shutil.copytree(grown / STATE, fewer)
        state = submerge.Continual(fewer)
        for task in set(state.tasks) - set(tasks):
            state.remove(task)
        return state

    def _grown(self, begin: Mapping[str, Any]) -> Path:
        folder = self.folder / "-".join(map(str, begin.values()))
        trainings = trained(list(self.adapters.values()), folder.name)
        inputs = self.scorer.inputs

        def make(part: Path, measured: Result) -> None:
            state = submerge.Continual.begin(part / STATE, str(self.base), **begin)
            for task, adapter in self.adapters.items():
                with timed(measured, f"seconds_of_{task}"):
                    measured[f"warnings_of_{task}"] = state.add(task, str(adapter), str(inputs[task]))
            measured["bytes"] = sum(file.stat().st_size for file in (part / STATE).rglob("*.safetensors"))

        facts = {"begin": dict(begin), "trained": trainings, "samples": self.scorer.suite.samples}
        facts["statistics"] = True  # of images, which states of earlier versions lack
        cached(folder, facts, make)
        return folder
