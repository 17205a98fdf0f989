"""The sign vote of TIES: elect a sign for every entry, and merge the entries that have it.

DARE-TIES, DELLA, Breadcrumbs-TIES, SCE, KnOTS-TIES and SSAM's merger `ties` share it.
Yadav et al. 2023, arXiv 2306.01708, steps 2 (elect) and 3 (disjoint merge).
"""

from __future__ import annotations

from collections.abc import Sequence

from submerge.algebra import Chunk, total
from submerge.deferred import torch

__all__ = ["consensus", "disjoint_merge"]


def consensus(
    chunk: Chunk, shares: Sequence[float], counts: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (Σ share_t |Δ_t|, Σ count_t, sign) over the entries that agree with the elected sign.

    The elected sign is that of Σ Δ_t, and + where that is 0 (as in mergekit). Overwrites the updates; the
    results are scratch rows 0 to 2.
    """
    sum_, divisor, sign = (chunk.scratch(k) for k in range(3))
    _elect(list(chunk.updates), shares, counts, sum_, divisor, sign)
    return sum_, divisor, sign


def disjoint_merge(terms: Sequence[torch.Tensor], weights: Sequence[float] | None) -> torch.Tensor:
    """Return the sum of the terms' entries that have the elected sign, that of their sum, + where that is 0.

    With weights, divided by the sum of the weights of those that have it (0 counts for nothing). Overwrites
    the terms.
    """
    sum_, divisor, sign = (torch.empty_like(terms[0]) for _ in range(3))
    ones = [1.0] * len(terms)
    _elect(terms, ones, ones if weights is None else weights, sum_, divisor, sign)
    if weights is not None:
        sum_.div_(divisor.add_(divisor == 0))
    return sum_.mul_(sign)


def _elect(
    terms: Sequence[torch.Tensor],
    shares: Sequence[float],
    counts: Sequence[float],
    sum_: torch.Tensor,
    divisor: torch.Tensor,
    sign: torch.Tensor,
) -> None:
    """Write Σ share_t |term_t| and Σ count_t over the agreeing entries, and the elected sign."""
    total(terms, out=sign).ge_(0).mul_(2).sub_(1)
    sum_.zero_()
    divisor.zero_()
    for term, share, count in zip(terms, shares, counts, strict=True):
        # times the sign, an entry that agrees is its magnitude, and one that does not is negative
        sum_.add_(term.mul_(sign).clamp_(min=0), alpha=share)
        divisor.add_(term.gt_(0), alpha=count)
