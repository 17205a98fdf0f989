"""What a module is given of several inputs whose positions lie side by side in one row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["positions_apart"]


def positions_apart(x: torch.Tensor, positions: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Return x [Σ n_i, d] or [1, Σ n_i, d] as what each input has of it, [n_i, d]; `positions` are the n_i.

    An input may stand there several times, one after another, as of a batch that was expanded for beams.
    There is nothing where x has other positions than these, or a row for each input.

    Examples:
        >>> import torch
        >>> from submerge.gating import positions_apart
        >>> [len(part) for part in positions_apart(torch.ones(1, 5, 8), (2, 3))]
        [2, 3]
        >>> positions_apart(torch.ones(2, 5, 8), (5, 5))
        ()
    """
    known, is_one_row = sum(positions), x.ndim == 2 or (x.ndim == 3 and len(x) == 1)
    rows = x.reshape(-1, x.shape[-1])
    if not known or not is_one_row or len(rows) % known:
        return ()
    times = len(rows) // known
    return torch.split(rows, [n for n in positions for _ in range(times)])
