"""Sums over runs that hold where their terms leave the range of float32.

The squares of values above 1e19 or below 1e-19 do, and sums of magnitudes above 5e36. Terms are of the type
of the values, for speed. Where the sums show that some were too large or too small, they are summed once more
in float64.
"""

from __future__ import annotations

import math

from submerge.deferred import np, npt
from submerge.kernels import _products
from submerge.kernels._types import Floats

__all__ = ["gram", "sum_magnitudes", "sum_squares"]

SMALLEST = 2.0**-126
"""The smallest normal number of float32. So many times the number of terms, a sum of squares has lost less by
terms below it than by its own rounding."""


def sum_squares(values: Floats) -> float:
    """Return Σ x_i² of values [n]; infinity where float64 has no such number."""
    total: float = _products.dot(values, values)
    if _holds(total, values):
        return total
    wide = values.astype(np.float64)
    again: float = _products.dot(wide, wide)
    return again


def gram(rows: Floats, out: npt.NDArray[np.float64]) -> None:
    """Write the inner products [T, T] of rows [T, n]; infinity or NaN where float64 has no such number."""
    _products.gram(rows, out)
    if not all(_holds(float(out[t, t]), row) for t, row in enumerate(rows)):
        _products.gram(rows.astype(np.float64), out)


def sum_magnitudes(values: Floats) -> float:
    """Return Σ |x_i| of values [n]; infinity where float64 has no such number."""
    total: float = _products.sum_magnitudes(values)
    if math.isfinite(total) or values.dtype == np.float64:
        return total
    again: float = _products.sum_magnitudes(values.astype(np.float64))
    return again


def _holds(total: float, values: Floats) -> bool:
    """Return whether a sum of squares is as exact as its type allows; no other type helps float64."""
    if values.dtype == np.float64 or values.size * SMALLEST <= total < math.inf:
        return True
    return total == 0 and not values.any()
