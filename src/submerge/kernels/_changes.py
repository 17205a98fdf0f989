"""Which models change an element, and the mean of their updates."""

from __future__ import annotations

from submerge.deferred import np, npt
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

__all__ = ["add_shares", "count_changed", "count_unique"]


def _changed(values: Floats, least: Number) -> npt.NDArray[np.bool_]:
    return np.logical_not(np.abs(values) <= least)


def _count_changed(counts: Floats, values: Floats, least: Number) -> None:
    np.add(counts, _changed(values, least), out=counts)


@kernel(_count_changed)
def count_changed(counts: Floats, values: Floats, least: Number) -> None:
    """Add 1 to counts [n] where the values [n] are of a magnitude above `least`, or NaN."""
    zero, one = counts.dtype.type(0), counts.dtype.type(1)
    for i in range(counts.size):
        counts[i] += zero if abs(values[i]) <= least else one


def _count_unique(values: Floats, counts: Floats, least: Number) -> tuple[int, int]:
    changed = _changed(values, least)
    return int(np.count_nonzero(changed)), int(np.count_nonzero(changed & (counts == 1)))


@kernel(_count_unique)
def count_unique(values: Floats, counts: Floats, least: Number) -> tuple[int, int]:
    """Return how many values [n] `count_changed` counts, and how many of those where the count is 1."""
    changed, unique = 0, 0
    for i in range(values.size):
        if not abs(values[i]) <= least:
            changed += 1
            unique += 1 if counts[i] == 1 else 0
    return changed, unique


def _add_shares(total: Floats, values: Floats, counts: Floats, least: Number, factor: Number) -> None:
    shares = np.where(counts == 1, values * factor, values / counts)
    np.add(total, np.where(_changed(values, least), shares, total.dtype.type(0)), out=total)


@kernel(_add_shares)
def add_shares(total: Floats, values: Floats, counts: Floats, least: Number, factor: Number) -> None:
    """Add values / counts to a total [n], but values · factor where the count is 1.

    Left out are values that `count_changed` does not count.
    """
    zero, one = total.dtype.type(0), total.dtype.type(1)
    for i in range(total.size):
        value = values[i]
        share = value * factor if counts[i] == one else value / counts[i]
        total[i] += zero if abs(value) <= least else share
