"""Trains what reads soft tokens: projectors, and updates of the LM; the LM itself stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.replication.lm.streams import StreamedLM, TokenBatch
from benchmarks.replication.loop import cosine, minimise, paced, tenths

__all__ = ["Tuning", "fit"]


@dataclass(frozen=True)
class Tuning:
    """First the projector alone, where it is new, then projector and LoRA."""

    rank: int = 16
    first: int = 80
    steps: int = 240
    first_rate: float = 3e-3
    rate: float = 1e-3
    warmup: int = 20
    batch: int = 64

    def config(self) -> dict[str, Any]:
        """Return all numbers, for a marker or a report."""
        return asdict(self)


def fit(
    model: StreamedLM,
    weights: list[nn.Parameter],
    sample: Callable[[int], TokenBatch],
    steps: int,
    rate: float,
    warmup: int,
) -> list[float]:
    """Train in place: AdamW, warm-up, cosine; return the mean loss of every tenth of the steps."""
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True)
    schedule = paced(optimizer, cosine(steps, warmup))

    def loss_of(step: int) -> torch.Tensor:
        return cross_entropy(*model.answers(sample(step)))

    return tenths(minimise(loss_of, weights, optimizer, schedule, range(steps), clip=1.0))
