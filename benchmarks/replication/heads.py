"""Frozen heads like those of a zero-shot model: class means of a few examples' centred base features.

    logits = 20 cos(f − μ, W_c)    f: unit feature, μ: mean of generic inputs, W_c: mean of some unit f − μ

One scale for all tasks. A task that is scored has two anchors, made of low and of high examples, and
predicts sigmoid(logit of high − logit of low). Dense targets have two anchors for every pixel of a place:
the mean feature of the places of some examples where that pixel is off, and where it is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from benchmarks.replication.rows import CLASSES, DENSE, SCORE, Rows

__all__ = ["DENSE_SHOTS", "Head", "logits", "loss", "predict", "score", "shots"]

DENSE_SHOTS = 10
"""Times the shots of a class: how many examples the anchors of dense targets are made of."""

LOW_HIGH = 0.2
"""Anchors of a scored task come from this share of the training items at either end."""


@dataclass(frozen=True)
class Head:
    """The centre μ, shape [d], the class vectors, shape [C, d], the scale, and the kind of task."""

    centre: torch.Tensor
    vectors: torch.Tensor
    kind: str = CLASSES
    scale: float = 20.0

    @classmethod
    def of(cls, centre: torch.Tensor, examples: Sequence[torch.Tensor], **rest: Any) -> Head:
        """Return the head whose class c has the features `examples[c]`, shape [shots, d]."""
        means = [normalize(features - centre, dim=-1).mean(0) for features in examples]
        return cls(centre, torch.stack(means), **rest)

    @classmethod
    def of_places(
        cls, centre: torch.Tensor, features: torch.Tensor, masks: torch.Tensor, **rest: Any
    ) -> Head:
        """Return the head of features, shape [n, places, d], and pixels, shape [n, places, pixels]."""
        units = normalize(features - centre, dim=-1).flatten(0, 1)
        on = masks.flatten(0, 1).to(units.dtype)
        sides = [(side.T @ units) / side.sum(0).clamp(min=1)[:, None] for side in (1 - on, on)]
        return cls(centre, torch.cat(sides), **rest)

    def to(self, device: torch.device | str) -> Head:
        """Return the head on a device."""
        return Head(self.centre.to(device), self.vectors.to(device), self.kind, self.scale)


def shots(rows: Rows, kind: str, classes: int, count: int, seed: int) -> list[Rows]:
    """Return `count` training rows for each class, or for the low and the high anchor.

    Dense targets have one group of `DENSE_SHOTS` times as many rows.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [rows[i] for i in order]
    if kind == DENSE:
        return [drawn[: DENSE_SHOTS * count]]
    if kind == SCORE:
        ranked = sorted(drawn, key=lambda row: row[2])  # stable, so that ties stay in drawn order
        end = max(count, int(LOW_HIGH * len(ranked)))
        low, high = set(map(id, ranked[:end])), set(map(id, ranked[-end:]))
        return [[row for row in drawn if id(row) in side][:count] for side in (low, high)]
    groups = [[row for row in drawn if row[2] == label][:count] for label in range(classes)]
    if empty := [label for label, group in enumerate(groups) if not group]:
        raise ValueError(f"no training rows of classes {empty}: raise most_train, or join rare classes")
    return groups


def logits(head: Head, features: torch.Tensor) -> torch.Tensor:
    """Return the scaled cosines, shape [..., C], of unit features, shape [..., d]."""
    return head.scale * normalize(features - head.centre, dim=-1) @ normalize(head.vectors, dim=-1).T


def predict(head: Head, features: torch.Tensor) -> torch.Tensor:
    """Return the class of each input, or its score in [0, 1], or one for every pixel."""
    outputs = logits(head, features)
    return outputs.argmax(1) if head.kind == CLASSES else _balance(outputs, head.kind).sigmoid()


def _balance(outputs: torch.Tensor, kind: str) -> torch.Tensor:
    """Return logits of high − logits of low, shape [n], or of dense targets [n, places, pixels]."""
    low, high = outputs.chunk(2, -1)
    return (high - low).squeeze(-1) if kind == SCORE else high - low


def loss(head: Head, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy; of scores that of the sigmoid, with the score as a soft label."""
    outputs = logits(head, features)
    if head.kind == CLASSES:
        return cross_entropy(outputs, labels.long())
    return binary_cross_entropy_with_logits(_balance(outputs, head.kind), labels.float())


def score(kind: str, predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Return accuracy, or Pearson's correlation over all numbers (0 where the prediction is constant)."""
    if kind == CLASSES:
        return (predicted == labels).double().mean().item()
    both = torch.stack([predicted.double().flatten(), labels.double().flatten()])
    centred = both - both.mean(1, keepdim=True)
    lengths = centred.norm(dim=1)
    if not lengths.min() > 1e-12:
        return 0.0
    return (centred[0] @ centred[1] / lengths.prod()).item()
