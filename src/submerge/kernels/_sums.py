"""Sums of scaled runs."""

from __future__ import annotations

from submerge.deferred import np
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

__all__ = ["MOST_ROWS", "add_rows", "add_scaled", "scale"]

MOST_ROWS = 8
"""The most rows that a kernel takes as a tuple. The compiler unrolls the loop over a tuple, so that the sums
stay in registers, up to about this length; a longer one would be copied for each element."""


def _scale(values: Floats, factor: Number) -> None:
    np.multiply(values, factor, out=values)


@kernel(_scale)
def scale(values: Floats, factor: Number) -> None:
    """Multiply values [n] by a factor of their type, in place."""
    for i in range(values.size):
        values[i] *= factor


def _add_scaled(total: Floats, values: Floats, factor: Number) -> None:
    np.add(total, values * factor, out=total)


@kernel(_add_scaled)
def add_scaled(total: Floats, values: Floats, factor: Number) -> None:
    """Add factor · values [n] to a total, in place."""
    for i in range(total.size):
        total[i] += values[i] * factor


def _add_rows(total: Floats, factor: Number, rows: tuple[Floats, ...], factors: tuple[Number, ...]) -> None:
    _scale(total, factor)
    for row, c in zip(rows, factors, strict=True):
        _add_scaled(total, row, c)


@kernel(_add_rows)
def add_rows(total: Floats, factor: Number, rows: tuple[Floats, ...], factors: tuple[Number, ...]) -> None:
    """Set a total to factor · total + Σ factors_t rows_t, added in order; one to `MOST_ROWS` rows."""
    for i in range(total.size):
        value = total[i] * factor
        for t in range(len(rows)):
            value += rows[t][i] * factors[t]
        total[i] = value
