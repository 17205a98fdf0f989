"""Aligns a projector to words, before anything else is trained; no pass of the language model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.replication.loop import linear, minimise, paced
from benchmarks.replication.multimodal.reader import EncodedRow

__all__ = ["ProjectorAlignment", "align"]


@dataclass(frozen=True)
class ProjectorAlignment:
    """How a projector is aligned."""

    steps: int = 400
    rate: float = 2e-3
    batch: int = 64
    warmup: int = 10

    def config(self) -> dict[str, Any]:
        """Return all numbers, for a marker or a report."""
        return asdict(self)


def align(
    projector: nn.Module,
    table: torch.Tensor,
    rows: Sequence[EncodedRow],
    alignment: ProjectorAlignment,
    draw: torch.Generator,
) -> float:
    """Draw the mean of an input's tokens to the mean embedding of its caption; return the last loss.

    The loss is the square distance, as a share of the captions' own variance.
    """
    if not alignment.steps:
        return float("nan")
    projector.requires_grad_(True)
    targets = torch.stack([table[row.caption].mean(0) for row in rows])
    spread = targets.var(0).sum().clamp(min=1e-6)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=alignment.rate, weight_decay=0.0)
    schedule = paced(optimizer, linear(alignment.steps, alignment.warmup))

    def loss_of(_: int) -> torch.Tensor:
        which = torch.randint(len(rows), (alignment.batch,), generator=draw).tolist()
        features = [rows[i].features for i in which]
        means = [part.mean(0) for part in projector(torch.cat(features)).split(list(map(len, features)))]
        return (torch.stack(means) - targets[which]).square().sum(1).mean() / spread

    losses = minimise(loss_of, list(projector.parameters()), optimizer, schedule, range(alignment.steps))
    return losses[-1].item()
