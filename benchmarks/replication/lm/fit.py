"""Trains what reads soft tokens: projectors, and updates of the LM; the LM itself stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.replication.lm.streams import Batch, Reader

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
    reader: Reader,
    weights: list[nn.Parameter],
    sample: Callable[[int], Batch],
    steps: int,
    rate: float,
    warmup: int,
) -> list[float]:
    """Train in place: AdamW, warm-up, cosine; return the mean loss of every tenth of the steps."""
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True)
    warm = min(warmup, max(1, steps // 5))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (1 + np.cos(np.pi * step / steps)) / 2)
    )
    losses = []
    for step in range(steps):
        loss = cross_entropy(*reader.answers(sample(step)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return [round(part.mean().item(), 4) for part in torch.stack(losses).tensor_split(min(10, steps))]
