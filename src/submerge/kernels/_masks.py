"""Masks on runs of values: by magnitude, by another run, and at random."""

from __future__ import annotations

from submerge.deferred import np
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

__all__ = ["keep_between", "keep_where_least"]


def _keep_between(values: Floats, least: Number, most: Number) -> None:
    magnitudes = np.abs(values)
    np.multiply(values, (magnitudes <= most).astype(values.dtype), out=values)
    values[magnitudes < least] = 0


@kernel(_keep_between)
def keep_between(values: Floats, least: Number, most: Number) -> None:
    """Clear the values [n] of a magnitude below `least`, and multiply by 0 those above `most`, in place.

    NaN stays NaN, and an infinite value above `most` becomes NaN.
    """
    zero, one = values.dtype.type(0), values.dtype.type(1)
    for i in range(values.size):
        value = values[i]
        magnitude = abs(value)
        value *= one if magnitude <= most else zero
        values[i] = zero if magnitude < least else value


def _keep_where_least(values: Floats, measure: Floats, least: Number) -> None:
    np.multiply(values, (measure >= least).astype(values.dtype), out=values)


@kernel(_keep_where_least)
def keep_where_least(values: Floats, measure: Floats, least: Number) -> None:
    """Multiply by 0 the values [n] whose measure [n] is below `least`, in place."""
    zero, one = values.dtype.type(0), values.dtype.type(1)
    for i in range(values.size):
        values[i] *= one if measure[i] >= least else zero
