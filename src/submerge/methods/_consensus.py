"""The sign vote that TIES, DARE-TIES, DELLA, Breadcrumbs-TIES and SCE share."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.algebra import Chunk, total
from submerge.deferred import torch

__all__ = ["consensus"]


def consensus(
    chunk: Chunk, shares: Sequence[float], counts: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (Σ share_t |Δ_t|, Σ count_t, sign) over the entries that agree with the majority's sign.

    The majority's sign is that of Σ Δ_t, and + where that is 0 (as in mergekit). Overwrites the
    updates; the results are scratch rows 0 to 2.
    """
    sum_, divisor, sign = (chunk.scratch(k) for k in range(3))
    total(chunk.updates, out=sign).ge_(0).mul_(2).sub_(1)
    sum_.zero_()
    divisor.zero_()
    for update, share, count in zip(chunk.updates, shares, counts, strict=True):
        sum_.add_(update.mul_(sign).clamp_(min=0), alpha=share)
        divisor.add_(update.gt_(0), alpha=count)
    return sum_, divisor, sign
