"""The sign vote that TIES, DARE-TIES, DELLA, Breadcrumbs-TIES and SCE share."""

from __future__ import annotations

import torch

__all__ = ["majority"]


def majority(vote: torch.Tensor) -> torch.Tensor:
    """Return +1 where vote ≥ 0, else −1 (so a tie is positive, as in mergekit); overwrites `vote`."""
    return vote.ge_(0).mul_(2).sub_(1)
