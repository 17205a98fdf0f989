"""From evidence to a choice: z-scores, shares, and the tasks that run, for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["NATS", "Choice", "choose", "heard", "pooled", "weighed", "zscores"]

NATS = {"residual": 24.0, "whitened": 24.0, "gaussian": 24.0, "leading": 96.0}
"""What a standard deviation that all sites agree on is worth beside other evidence, by score. Chosen on
validation items: of three suites of fine-tunes, where anything from 16 to 32 does as well as 24, and of two
suites of adapters, where 64 to 128 do. Random rows make every site of an adapter waver, each in its own way,
so that the same agreement says more."""
NUMBERS = 0.5
"""How far above the mean of the others' evidence that of a head of numbers is put, in their deviations.
Chosen on validation items: more finds more inputs of such heads, and loses more of the others'."""
TINY = 1e-6
"""What the authors add to the deviation, so that equal residuals do not divide by 0."""


@dataclass(frozen=True)
class Choice:
    """Shares [B, T], the chosen tasks of each sample in ascending order, and the first choice [B]."""

    coefficients: torch.Tensor
    tasks: list[tuple[int, ...]]
    lead: torch.Tensor


def zscores(found: torch.Tensor) -> torch.Tensor:
    """Return −r as z-scores over the tasks, (mean − r_t) / (std + 10⁻⁶), for r [..., T]; 0 for one task.

    The deviation is the unbiased one, so that one task would have none: the authors' code gets NaN there.
    """
    if found.shape[-1] < 2:
        return torch.zeros_like(found)
    return (found.mean(-1, keepdim=True) - found) / (found.std(-1, keepdim=True) + TINY)


def weighed(scores: torch.Tensor, others: Sequence[torch.Tensor], nats: float) -> torch.Tensor:
    """Return the sites' scores S [B, T] and other evidence in nats [B, T] as one: c Var_t(S) S + Σ others.

    S is a mean of z-scores over the sites, each of variance 1 over the tasks. So its own variance is the
    share that the sites agree on: near 1 where all name the same tasks, near 0 where they contradict each
    other, and other evidence should decide. Without any, S is returned as it is.
    """
    if not others:
        return scores
    agreed = scores.double().var(-1, keepdim=True)
    return torch.stack([nats * agreed * scores, *(one.to(scores) for one in others)]).sum(0)


def heard(said: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return what heads say [B, T], in nats, with that of heads of numbers put in its place.

    `said` is log Σ exp of each head's outputs, and `classes` [T] tells heads of classes. A number says
    nothing of its input. At the mean of the others it would lose against the loudest of them on every input,
    its own too; so it gets half a deviation more.
    """
    if not classes.any():
        return torch.zeros_like(said)
    others = said[:, classes]
    level = others.mean(1, keepdim=True) + NUMBERS * others.std(1, correction=0, keepdim=True)
    return torch.where(classes, said, level)


def pooled(scores: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    """Return scores [B, T] with each group's replaced by their mean; `groups` [B] are numbers from 0."""
    if groups is None:
        return scores
    count = int(groups.max()) + 1
    sums = torch.zeros(count, scores.shape[1], dtype=scores.dtype, device=scores.device)
    sums.index_add_(0, groups, scores)
    sizes = torch.bincount(groups, minlength=count).to(scores)
    return (sums / sizes.unsqueeze(1))[groups]


def choose(
    scores: torch.Tensor,
    *,
    select: str,
    threshold: float,
    most: int,
    temperature: float,
    allowed: torch.Tensor | None = None,
) -> Choice:
    """Return the choice for scores [B, T], the larger the better; `allowed` [B, T] leaves tasks out.

    Shares are softmax(scores / τ). `top1` takes the first; the other rules take {t: share > η}, or the first
    alone where there is none; `threshold` of them the K with the largest shares. Of equal scores the earlier
    is first.
    """
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    coefficients = (scores / temperature).softmax(-1)
    lead = scores.argmax(-1)
    if select == "top1":
        return Choice(coefficients, [(t,) for t in lead.tolist()], lead)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    most = scores.shape[1] if select == "weighted" else most
    tasks = []
    for row, ranked in zip(coefficients.tolist(), order.tolist(), strict=True):
        above = [t for t in ranked if row[t] > threshold][:most]
        tasks.append(tuple(sorted(above or ranked[:1])))
    return Choice(coefficients, tasks, lead)


def grouped(ids: Sequence[object], device: torch.device) -> torch.Tensor:
    """Return numbers from 0 for any ids, in the order in which they first appear."""
    known: dict[object, int] = {}
    return torch.tensor([known.setdefault(i, len(known)) for i in ids], device=device)
