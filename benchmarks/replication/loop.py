"""The training loop of all that the replication bench trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

__all__ = ["batches", "cosine", "linear", "minimise", "paced", "tenths"]

Pace = Callable[[int], float]
"""Step, counted from 0 -> share of the learning rate."""


def minimise(
    loss_of: Callable[[int], torch.Tensor],
    weights: Sequence[nn.Parameter],
    optimizer: Optimizer,
    schedule: LRScheduler,
    steps: Iterable[int],
    clip: float = 0.0,
    after: Callable[[int, torch.Tensor], None] = lambda step, loss: None,
) -> list[torch.Tensor]:
    """Take the steps in place; return the loss of each, as scalars without gradients.

    `loss_of` draws the batch of a step and returns its loss. `clip` bounds the norm of all weights'
    gradients, in the order of `weights`, on which its last bit depends; 0 leaves them as they are. `after`
    is called at the end of each step.
    """
    losses = []
    for step in steps:
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        after(step, losses[-1])
    return losses


def tenths(losses: Sequence[torch.Tensor]) -> list[float]:
    """Return the mean loss of every tenth of the steps, or of each of fewer than ten."""
    parts = torch.stack(list(losses)).cpu().tensor_split(min(10, len(losses)))
    return [round(part.mean().item(), 4) for part in parts]


def paced(optimizer: Optimizer, pace: Pace, first: int = 0) -> LambdaLR:
    """Return a schedule that takes the rate times `pace`, from the step `first` on."""
    return LambdaLR(optimizer, lambda step: pace(first + step))


def linear(steps: int, warmup: int) -> Pace:
    """Return the pace that rises to 1 in `warmup` steps, or a fifth of all, and falls to 0 on a line."""
    warm = min(warmup, max(1, steps // 5))
    return lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def cosine(steps: int, warmup: int) -> Pace:
    """Return the pace that rises to 1 in `warmup` steps, or a fifth of all, and falls to 0 on a cosine."""
    warm = min(warmup, max(1, steps // 5))
    return lambda step: float(min((step + 1) / warm, (1 + np.cos(np.pi * step / steps)) / 2))


def batches(count: int, size: int, draw: torch.Generator) -> Iterator[list[int]]:
    """Yield batches of row numbers without end; each pass has every row once, but for what is left over."""
    while True:
        order = torch.randperm(count, generator=draw).tolist()
        yield from (order[at : at + size] for at in range(0, count - size + 1, size))
