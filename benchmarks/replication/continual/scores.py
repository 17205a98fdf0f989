"""What the adapters of a seed, and merges of them, score on the tasks' questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import submerge
from benchmarks.replication.bench import Scores
from benchmarks.replication.cache import Cache
from benchmarks.replication.continual.inputs import write_inputs
from benchmarks.replication.continual.questions import ReadQuestion, accuracy, read_questions
from benchmarks.replication.continual.rows import DISCRIMINANT, MIXED, SERVED
from benchmarks.replication.continual.suite import ContinualSuite
from benchmarks.replication.multimodal.reader import ModalityReader

__all__ = ["Steps", "TaskScorer", "final", "forgetting", "mean"]

Steps = list[Scores]
"""After each task: task -> accuracy, for the tasks so far."""


class TaskScorer:
    """The questions of the suite's tasks, and the models that are asked."""

    def __init__(self, suite: ContinualSuite, cache: Cache, data: Path) -> None:
        self.suite, self.base, self.data, self.place = suite, suite.base(cache), data, cache.root / "inputs"

    @cached_property
    def questions(self) -> dict[tuple[str, str], list[ReadQuestion]]:
        """Task and part -> questions as the model reads them."""
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(self.base)
        rows = {task: self.suite.rows(task, self.data) for task in self.suite.tasks}
        return {
            (task, part): read_questions(processor, rows[task][part])
            for task in rows
            for part in ("validation", "test")
        }

    @cached_property
    def inputs(self) -> dict[str, Path]:
        """Task -> file of its unlabelled inputs."""
        return {
            task: write_inputs(
                self.suite.rows(task, self.data)["train"][: self.suite.samples], self.place / task
            )
            for task in self.suite.tasks
        }

    def scores(self, model: Any, part: str, tasks: Sequence[str], *, told: bool = False) -> Scores:
        """Return task -> accuracy of a model, to which the task of each question may be told."""
        return {
            task: accuracy(model, self.questions[task, part], **({"task": task} if told else {}))
            for task in tasks
        }

    def adapted(self, adapter: Path | None = None) -> Any:
        """Return the base with an adapter, or as it is."""
        from peft import PeftModel

        model = ModalityReader(self.base, "image").model
        return PeftModel.from_pretrained(model, adapter).eval() if adapter else model

    def load(self, out: Path, projectors: str, served: str = "image") -> Any:
        """Return a merged model: served in a way, an adapter on the base, or a checkpoint."""
        if projectors == MIXED:
            by_prototypes = {way: {"score": "prototypes", **settings} for way, settings in SERVED.items()}
            return submerge.load(out, **(by_prototypes | DISCRIMINANT)[served])
        is_adapter = (out / "adapter_config.json").exists()
        return self.adapted(out) if is_adapter else ModalityReader(out, "image").model


def mean(scores: Scores) -> dict[str, float]:
    """Return the mean accuracy over the tasks, as `Bench.choose` takes it."""
    return {"mean": sum(scores.values()) / len(scores)}


def final(steps: Steps) -> float:
    """Return the mean accuracy after the last task (FAA)."""
    return mean(steps[-1])["mean"]


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
