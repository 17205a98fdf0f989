"""The sign vote of TIES: elect a sign for every entry, and merge the entries that have it.

DARE-TIES, DELLA, Breadcrumbs-TIES, SCE, KnOTS-TIES and SSAM's merger `ties` share it.
Yadav et al. 2023, arXiv 2306.01708, steps 2 (elect) and 3 (disjoint merge).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from submerge.algebra import Chunk, total
from submerge.deferred import np, npt, torch
from submerge.kernels import MOST_ROWS, is_finite, vote, vote_few

__all__ = ["consensus", "disjoint_merge"]


def consensus(
    chunk: Chunk,
    ballots: Sequence[float],
    shares: Sequence[float],
    counts: Sequence[float] | None,
    *,
    least: float = 0.0,
    factor: float = 1.0,
) -> npt.NDArray[Any]:
    """Return factor · s · Σ share_t |b_t Δ_t| over the entries that agree with the elected sign s.

    The elected sign is that of Σ b_t Δ_t, and + where that is 0 (as in mergekit). With counts, divided by the
    sum of those of the entries that agree, but by no less than `least`. The result is scratch row 0. A chunk
    whose sums are beyond float32 is merged in float64.
    """
    updates, out = chunk.values, chunk.row(0)
    number = out.dtype.type
    if counts is None and not 1 < len(updates) < MOST_ROWS:  # of `MOST_ROWS`, sums alone are not vectorised
        counts = [0.0] * len(updates)
    b, share, count = (tuple(map(number, x)) for x in (ballots, shares, counts or ()))
    if 1 < len(updates) <= MOST_ROWS:
        vote_few(out, tuple(updates), b, share, count, number(least), number(factor))
    else:
        vote(out, updates, *map(np.array, (b, share, count)), number(least), number(factor))
    if out.dtype == np.float32 and not is_finite("F32", out):
        _in_float64(out, updates, (ballots, shares, counts or ()), least, factor)
    return out


def _in_float64(
    out: npt.NDArray[Any],
    updates: npt.NDArray[Any],
    numbers: Sequence[Sequence[float]],
    least: float,
    factor: float,
) -> None:
    """Write what `consensus` returns of updates [T, n] of which sums leave the range of float32."""
    wide = np.empty(out.shape, np.float64)
    with np.errstate(all="ignore"):
        vote.reference(wide, updates.astype(np.float64), *map(np.array, numbers), least, factor)
        out[:] = wide


def disjoint_merge(terms: Sequence[torch.Tensor], weights: Sequence[float] | None) -> torch.Tensor:
    """Return the sum of the terms' entries that have the elected sign, that of their sum, + where that is 0.

    With weights, divided by the sum of the weights of those that have it (0 counts for nothing). Overwrites
    the terms.
    """
    sign = total(terms, out=torch.empty_like(terms[0])).ge_(0).mul_(2).sub_(1)
    sum_, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for term, weight in zip(terms, weights or [1.0] * len(terms), strict=True):
        # times the sign, an entry that agrees is its magnitude, and one that does not is negative
        sum_.add_(term.mul_(sign).clamp_(min=0))
        divisor.add_(term.gt_(0), alpha=weight)
    if weights is not None:
        sum_.div_(divisor.add_(divisor == 0))
    return sum_.mul_(sign)
