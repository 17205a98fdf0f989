"""The sign vote of TIES, with the sum over the entries that agree with the elected sign.

Written twice: for few models, whose values of an element all stay in registers, and for any number of them.
"""

from __future__ import annotations

from submerge.deferred import np
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

__all__ = ["vote", "vote_few"]


def _vote(
    out: Floats,
    rows: Floats | tuple[Floats, ...],
    ballots: Floats | tuple[Number, ...],
    shares: Floats | tuple[Number, ...],
    counts: Floats | tuple[Number, ...],
    least: Number,
    factor: Number,
) -> None:
    terms = [row * ballot for row, ballot in zip(rows, ballots, strict=True)]
    total = terms[0].copy()
    for term in terms[1:]:
        total += term
    sign = (total >= 0).astype(out.dtype) * 2 - 1
    sum_, divisor = np.zeros_like(out), np.zeros_like(out)
    none = np.zeros(len(terms), out.dtype)
    for term, share, count in zip(terms, shares, counts if len(counts) else none, strict=True):
        agreeing = term * sign
        sum_ += np.maximum(agreeing, 0) * share
        divisor += (agreeing > 0) * count
    sum_ += total - total
    divisor[(np.abs(divisor) < least) & (divisor != 0)] = least
    divisor[divisor == 0] = 1
    np.multiply(sum_ / divisor, sign * factor, out=out)


@kernel(_vote)
def vote_few(
    out: Floats,
    rows: tuple[Floats, ...],
    ballots: tuple[Number, ...],
    shares: tuple[Number, ...],
    counts: tuple[Number, ...],
    least: Number,
    factor: Number,
) -> None:
    """Write what `vote` does, of two to `MOST_ROWS` rows; no counts are counts of 0."""
    zero = out.dtype.type(0)
    for i in range(out.size):
        total = rows[0][i] * ballots[0]
        for t in range(1, len(rows)):
            total += rows[t][i] * ballots[t]
        positive = total >= zero
        sum_, divisor = total - total, zero  # 0, or NaN where the total is beyond the type
        for t in range(len(rows)):
            term = rows[t][i] * ballots[t]
            agreeing = term if positive else -term
            sum_ += (zero if agreeing < zero else agreeing) * shares[t]
            if len(counts) > 0:
                divisor += counts[t] if agreeing > zero else zero
        if len(counts) > 0:  # which is known where the loop is compiled
            if abs(divisor) < least:
                divisor = least if divisor != zero else zero
            sum_ /= divisor if divisor != zero else out.dtype.type(1)
        out[i] = sum_ * (factor if positive else -factor)


@kernel(_vote)
def vote(
    out: Floats,
    rows: Floats,
    ballots: Floats,
    shares: Floats,
    counts: Floats,
    least: Number,
    factor: Number,
) -> None:
    """Write the sum of the entries that agree with the elected sign, times a factor, divided by their counts.

    The elected sign s is that of Σ_t b_t x_t, and + where that is 0. Written is

        factor · s · Σ share_t |b_t x_t| / Σ count_t   over the t with s b_t x_t > 0.

    A divisor nearer to 0 than `least` counts as `least`, and one of 0 as 1: nothing is divided where no
    entry agrees, or all counts are 0. NaN stays NaN, and stands, too, where Σ_t b_t x_t is beyond the type:
    what is left of such a sum does not say its sign.

    Args:
        out: [n], no part of the rows.
        rows: x [T, n].
        ballots, shares, counts: b, share and count, each [T].
    """
    zero = out.dtype.type(0)
    block = 2048  # of which all that is written fits the first cache
    totals, divisors = np.empty(block, out.dtype), np.empty(block, out.dtype)
    for start in range(0, out.size, block):
        sums = out[start : start + block]
        n = sums.size
        total, divisor = totals[:n], divisors[:n]
        for t in range(rows.shape[0]):
            row, ballot = rows[t, start : start + n], ballots[t]
            if t == 0:
                for i in range(n):
                    total[i] = row[i] * ballot
            else:
                for i in range(n):
                    total[i] += row[i] * ballot
        sums[:] = zero
        divisor[:] = zero
        for t in range(rows.shape[0]):
            row, ballot, share, count = rows[t, start : start + n], ballots[t], shares[t], counts[t]
            for i in range(n):
                term = row[i] * ballot
                agreeing = term if total[i] >= zero else -term
                sums[i] += (zero if agreeing < zero else agreeing) * share
                divisor[i] += count if agreeing > zero else zero
        for i in range(n):
            d = divisor[i]
            if abs(d) < least:
                d = least if d != zero else zero
            sums[i] += total[i] - total[i]
            quotient = sums[i] / (d if d != zero else out.dtype.type(1))
            sums[i] = quotient * (factor if total[i] >= zero else -factor)
