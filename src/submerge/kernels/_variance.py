"""The variance of each element over the models."""

from __future__ import annotations

from submerge.deferred import np
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

__all__ = ["add_deviations", "subtract_square"]


def _add_deviations(sums: Floats, squares: Floats, first: Floats, rows: tuple[Floats, ...]) -> None:
    for row in rows:
        deviation = row - first
        np.add(sums, deviation, out=sums)
        np.add(squares, deviation * deviation, out=squares)


@kernel(_add_deviations)
def add_deviations(sums: Floats, squares: Floats, first: Floats, rows: tuple[Floats, ...]) -> None:
    """Add Σ d_t to sums [n] and Σ d_t² to squares [n], for d_t = rows_t − first; one to `MOST_ROWS` rows."""
    for i in range(sums.size):
        total, square = sums[i], squares[i]
        for t in range(len(rows)):
            deviation = rows[t][i] - first[i]
            total += deviation
            square += deviation * deviation
        sums[i] = total
        squares[i] = square


def _subtract_square(squares: Floats, sums: Floats, factor: Number) -> None:
    np.subtract(squares, sums * sums * factor, out=squares)


@kernel(_subtract_square)
def subtract_square(squares: Floats, sums: Floats, factor: Number) -> None:
    """Subtract sums² · factor from squares [n], in place."""
    for i in range(squares.size):
        squares[i] -= sums[i] * sums[i] * factor
