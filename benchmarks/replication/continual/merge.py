"""Merges the models of single tasks, and follows the merge from the first task to the last.

The LoRAs are merged by every method. Which projector an image goes through is a rule of its own: the plain
average of the projectors, or the task's own one, which needs to know the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.console import Say, silent
from benchmarks.replication.bench import Bench, MergeOptions, Scores
from benchmarks.replication.cache import Result, cached, trained
from benchmarks.replication.continual.encoder import EncodedPart
from benchmarks.replication.continual.specialists import LANGUAGE, PatchProjector, batch, projector
from benchmarks.replication.lm import pretrain
from benchmarks.replication.lm.streams import StreamedLM, StreamUpdates
from benchmarks.replication.lm.updates import Updates, dense, load_adapter
from benchmarks.replication.methods import Merge

__all__ = ["REFERENCES", "RULES", "ContinualBench", "final", "forgetting"]

REFERENCES = ("individual", "joint", "sequential")
AT_ONCE = 300
Steps = list[Scores]
"""After each task: task -> accuracy, for the tasks so far."""


def _average(projectors: Sequence[PatchProjector], _: int) -> nn.Module:
    states = [one.state_dict() for one in projectors]
    mean = PatchProjector(projectors[0].place.shape[1])
    mean.load_state_dict({key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]})
    return mean


def _own(projectors: Sequence[PatchProjector], task: int) -> nn.Module:
    return projectors[task]


RULES: dict[str, Callable[[Sequence[PatchProjector], int], nn.Module]] = {"average": _average, "own": _own}
"""Projectors of the tasks so far, and the number of the task that is asked about -> the image's projector.

A rule that mixes projectors by the image (CPM) is a further row: it ignores the number of the task.
"""


class ContinualBench(Bench):
    """One seed: its order of tasks, and the model of each. `parts` are task -> part -> features."""

    def __init__(
        self,
        lm: Path,
        parts: Mapping[str, Mapping[str, EncodedPart]],
        seed_folder: Path,
        order: Sequence[str],
        options: MergeOptions,
        say: Say = silent,
    ) -> None:
        self.order, self.folder = list(order), seed_folder
        self.individual = [seed_folder / "individual" / task for task in order]
        super().__init__(lm, [folder / LANGUAGE for folder in self.individual], "lora", options, say)
        folders = [*self.individual, *self.sequence(), seed_folder / "joint"]
        self.facts = {"order": self.order, "trained": trained(folders, seed_folder.name)}
        self.projectors = [projector(folder) for folder in self.individual]
        self.model = StreamedLM(pretrain.load(lm), {})
        self._merged: dict[tuple[float | None, int], Updates] = {}
        self._merged_by: Merge | None = None
        self.batches = {
            (task, name): [
                batch(part.asked[at : at + AT_ONCE], part.features)
                for at in range(0, len(part.asked), AT_ONCE)
            ]
            for task in order
            for name, part in parts[task].items()
            if name != "train"
        }

    def sequence(self) -> list[Path]:
        """Return the folders of the model that learns one task after another."""
        return [self.folder / "sequential" / f"{i}-{task}" for i, task in enumerate(self.order)]

    def accuracy(self, task: str, part: str, language: Updates, image: nn.Module) -> float:
        """Return the share of a task's questions that are answered rightly, with a projector of images."""
        self.model.projectors, self.model.updates = {"image": image}, [StreamUpdates(language)]
        return self.model.accuracy(self.batches[task, part])

    def _scores(self, part: str, language: Updates, rule: str, tasks: int) -> Scores:
        """Return task -> accuracy of a merge of the first `tasks`, on these."""
        so_far = self.projectors[:tasks]
        return {
            task: self.accuracy(task, part, language, RULES[rule](so_far, i))
            for i, task in enumerate(self.order[:tasks])
        }

    def reference(self, name: str) -> Result:
        """Return the test scores of what is no merge: individual models, joint or sequential training."""

        def make(_: Path, result: Result) -> None:
            result["steps"] = self._reference(name)

        return cached(self.folder / "results" / name, self.config({"reference": name}), make)

    def _reference(self, name: str) -> Steps:
        def scores(folder: Path, tasks: Sequence[str]) -> Scores:
            language, image = load_adapter(folder / LANGUAGE), projector(folder)
            return {task: self.accuracy(task, "test", language, image) for task in tasks}

        if name == "joint":
            return [scores(self.folder / "joint", self.order)]
        if name == "sequential":
            return [scores(folder, self.order[: i + 1]) for i, folder in enumerate(self.sequence())]
        own: Scores = {}
        for folder, task in zip(self.individual, self.order, strict=True):
            own |= scores(folder, [task])
        return [own]

    def run(self, row: Merge, rule: str) -> Result:
        """Return everything about one method and one rule: from the cache, or by tuning and testing it.

        The scale is chosen for all tasks, and taken after each of them.
        """
        count = len(self.order)

        def tune_and_test(part: Path, result: Result) -> Path:
            def validate(scale: float | None) -> Scores:
                return self._scores("validation", self._language(row, scale, part, count), rule, count)

            result |= self.choose(row, validate, _mean)
            scale = result.get("scale")
            result["steps"] = [self._scores("test", load_adapter(self.models[0]), rule, 1)]
            for tasks in range(2, count + 1):
                language = self._language(row, scale, part, tasks)
                result["steps"].append(self._scores("test", language, rule, tasks))
            return self.merge(row, scale, part)  # the last one of all that was merged may be of another scale

        def line(result: Result) -> str:
            return f"{self.folder.name} {row.name}, {rule} projector: {100 * final(result['steps']):.1f}"

        facts = row.facts() | {"rule": rule, "grid": list(self.grid(row))}
        return self.measured(self.folder / "results" / f"{row.name}-{rule}", facts, tune_and_test, line)

    def _language(self, row: Merge, scale: float | None, part: Path, tasks: int) -> Updates:
        """Return the merged LoRA of the first tasks; the rules for projectors share it."""
        if self._merged_by != row:
            self._merged, self._merged_by = {}, row
        if (scale, tasks) not in self._merged:
            self._merged[scale, tasks] = dense(self.merge(row, scale, part, tasks), self.model.lm)
        return self._merged[scale, tasks]


def _mean(scores: Scores) -> dict[str, float]:
    return {"mean": sum(scores.values()) / len(scores)}


def final(steps: Steps) -> float:
    """Return the mean accuracy after the last task (FAA)."""
    return sum(steps[-1].values()) / len(steps[-1])


def forgetting(steps: Steps) -> float | None:
    """Return how much was lost since each task was best (FFM): the mean over all but the last task."""
    if len(steps) < 2:
        return None
    lost = [
        max(step[task] for step in steps[:-1] if task in step) - steps[-1][task]
        for task in steps[-1]
        if task in steps[-2]
    ]
    return sum(lost) / len(lost)
