"""From evidence to a choice: z-scores, shares, and the tasks that run, for each sample.

Scores S [B, T] are means of z-scores over the sites. Other evidence (what the heads' outputs show, what the
caller knows) is a log-probability up to a constant, in nats; S is weighted by the variance of the mean
z-score to stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = [
    "TaskChoice",
    "choose",
    "combined",
    "complete_evidence",
    "group_means",
    "group_numbers",
    "joint_zscores",
    "log_evidence",
    "zscores",
]

REGRESSION_MARGIN = 0.5
"""How far above the mean of the others' log-evidence that of a regression head is put, in their deviations.
Chosen on validation items: more finds more inputs of such heads, and loses more of the others'."""
TINY = 1e-6
"""What the authors add to the deviation, so that equal residuals do not divide by 0."""


@dataclass(frozen=True)
class TaskChoice:
    """Shares [B, T], the chosen tasks of each sample in ascending order, and the first choice [B]."""

    coefficients: torch.Tensor
    tasks: list[tuple[int, ...]]
    lead: torch.Tensor


def zscores(residuals: torch.Tensor) -> torch.Tensor:
    """Return −r as z-scores over the tasks, (mean − r_t) / (std + 10⁻⁶), for r [..., T]; 0 for one task.

    The deviation is the unbiased one, so that one task would have none: the authors' code gets NaN there.
    """
    if residuals.shape[-1] < 2:
        return torch.zeros_like(residuals)
    return (residuals.mean(-1, keepdim=True) - residuals) / (residuals.std(-1, keepdim=True) + TINY)


def joint_zscores(residuals: torch.Tensor) -> torch.Tensor:
    """Return −r [M, B, T] of M maps as z-scores whose deviation is one for all maps: the rms of theirs.

    So maps of which the tasks are far apart count more in a mean, which ranks tasks as the mean of r does;
    and the mean has the variance 1 over the tasks where all maps agree, as that of z-scores has.
    """
    if residuals.shape[-1] < 2:
        return torch.zeros_like(residuals)
    deviation = residuals.var(-1, keepdim=True).mean(0).sqrt()
    return (residuals.mean(-1, keepdim=True) - residuals) / (deviation + TINY)


def combined(scores: torch.Tensor, others: Sequence[torch.Tensor], weight: float) -> torch.Tensor:
    """Return the sites' scores S [B, T] and other evidence in nats [B, T] as one: c Var_t(S) S + Σ others.

    S is a mean of z-scores over the sites, each of variance 1 over the tasks. So its own variance is the
    share that the sites agree on: near 1 where all name the same tasks, near 0 where they contradict each
    other, and other evidence should decide. `weight` c is what a standard deviation that all sites agree on
    is worth. Without other evidence S is returned as it is.
    """
    if not others:
        return scores
    agreement = scores.double().var(-1, keepdim=True)
    return torch.stack([weight * agreement * scores, *(one.to(scores) for one in others)]).sum(0)


def log_evidence(logits: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """Return the head evidence of each task [B, T], log Σ exp of its outputs, in nats.

    `logits` [B, T · C] are the heads' outputs side by side, −inf where a head of `widths` outputs has none.
    """
    evidence = logits.double().view(len(logits), len(widths), -1).logsumexp(-1)
    return complete_evidence(evidence, torch.tensor([w > 1 for w in widths], device=evidence.device))


def complete_evidence(evidence: torch.Tensor, classifies: torch.Tensor) -> torch.Tensor:
    """Return log-evidence of heads [B, T], in nats, with that of regression heads put in its place.

    `evidence` is log Σ exp of each head's outputs, and `classifies` [T] says which heads are of classes. The
    one output of a regression head is no evidence of its input. At the mean of the others it would lose
    against the largest of them on every input, its own too; so it gets half a deviation more.
    """
    if not classifies.any():
        return torch.zeros_like(evidence)
    others = evidence[:, classifies]
    level = others.mean(1, keepdim=True) + REGRESSION_MARGIN * others.std(1, correction=0, keepdim=True)
    return torch.where(classifies, evidence, level)


def group_means(scores: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
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
    most: int | None,
    temperature: float,
    allowed: torch.Tensor | None = None,
) -> TaskChoice:
    """Return the choice for scores [B, T], the larger the better; `allowed` [B, T] leaves tasks out.

    Shares are softmax(scores / τ). `top1` takes the first; the other rules take {t: share > η}, or the first
    alone where there is none; at most the `most` with the largest shares. Of equal scores the earlier is
    first.
    """
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    coefficients = (scores / temperature).softmax(-1)
    lead = scores.argmax(-1)
    if select == "top1":
        return TaskChoice(coefficients, [(t,) for t in lead.tolist()], lead)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    tasks = []
    for row, ranked in zip(coefficients.tolist(), order.tolist(), strict=True):
        above = [t for t in ranked if row[t] > threshold][:most]
        tasks.append(tuple(sorted(above or ranked[:1])))
    return TaskChoice(coefficients, tasks, lead)


def group_numbers(ids: Sequence[object], device: torch.device) -> torch.Tensor:
    """Return numbers from 0 for any ids, in the order in which they first appear."""
    known: dict[object, int] = {}
    return torch.tensor([known.setdefault(i, len(known)) for i in ids], device=device)
