"""Scores of a model on all tasks, and what they are beside the individual models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.replication import heads as head_of
from benchmarks.replication.encoder import Domain, Items
from benchmarks.replication.heads import Head
from benchmarks.replication.rows import CLASSES
from benchmarks.replication.splits import Split

__all__ = ["PARTS", "Scorer", "normalised", "summary"]

PARTS = ("screen", "validation", "test")
WRONG_SCORE = 0.5
"""What a scored task gets for an input that went to another task's model; a class is then wrong."""


class Scorer:
    """Scores models on parts of the tasks: some validation items, all of them, or the test."""

    def __init__(
        self, domain: Domain, splits: Mapping[str, Split], heads: Mapping[str, Head], base: Path, screen: int
    ) -> None:
        self.domain, self.heads = domain, heads
        self.kinds = {name: split.kind for name, split in splits.items()}
        self.items: dict[str, dict[str, Items]] = {part: {} for part in PARTS}
        for name, split in splits.items():
            rows = {"screen": split.validation[:screen], "validation": split.validation, "test": split.test}
            for part in PARTS[0 if screen else 1 :]:
                self.items[part][name] = domain.items(rows[part], base, split.kind)

    def predictions(self, model: Any, part: str, task: str) -> torch.Tensor:
        """Return what the model and the task's frozen head say of a part."""
        return head_of.predict(self.heads[task], self.domain.features(model, self.items[part][task]))

    def score(self, model: Any, part: str, task: str) -> float:
        """Return the accuracy or the correlation on a part of one task."""
        return self.of(self.predictions(model, part, task), part, task)

    def of(self, predicted: torch.Tensor, part: str, task: str) -> float:
        """Return the score of predictions."""
        return head_of.score(self.kinds[task], predicted, self.items[part][task].labels)

    def strict(self, predicted: torch.Tensor, right: torch.Tensor, part: str, task: str) -> float:
        """Return the score where an answer counts as wrong unless the right model, or head, gave it.

        `right` [n] says so of each input.
        """
        wrong = -1 if self.kinds[task] == CLASSES else WRONG_SCORE
        right = right.view(-1, *[1] * (predicted.ndim - 1))  # for all numbers of an input
        return self.of(torch.where(right, predicted, torch.full_like(predicted, wrong)), part, task)

    def scores(self, model: Any, part: str) -> dict[str, float]:
        """Return task -> score of one model."""
        return {task: self.score(model, part, task) for task in self.heads}


def normalised(scores: Mapping[str, float], individual: Mapping[str, float]) -> dict[str, float]:
    """Return task -> score ÷ score of the model that was trained for it."""
    return {task: value / individual[task] if individual[task] else 0.0 for task, value in scores.items()}


def summary(scores: Mapping[str, float], individual: Mapping[str, float]) -> dict[str, Any]:
    """Return scores, normalised scores, their mean and the worst task."""
    ratios = normalised(scores, individual)
    worst = min(ratios, key=lambda task: ratios[task])
    mean = sum(ratios.values()) / len(ratios)
    return {
        "scores": dict(scores),
        "normalised": ratios,
        "mean": mean,
        "worst": ratios[worst],
        "worst_task": worst,
    }
