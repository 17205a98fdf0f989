"""The variance of each element over the models."""

from __future__ import annotations

from submerge.deferred import np
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

__all__ = ["variance"]


def _variance(out: Floats, first: Floats, rows: tuple[Floats, ...], share: Number) -> None:
    total, squares = np.zeros_like(first), np.zeros_like(first)
    for row in rows:
        deviation = row - first
        total += deviation
        squares += deviation * deviation
    np.subtract(squares, total * total * share, out=out)


@kernel(_variance)
def variance(out: Floats, first: Floats, rows: tuple[Floats, ...], share: Number) -> None:
    """Write Σ d_t² − (Σ d_t)² · share, for d_t = rows_t − first; one to `MOST_ROWS` rows."""
    for i in range(out.size):
        total, squares = out.dtype.type(0), out.dtype.type(0)
        for t in range(len(rows)):
            deviation = rows[t][i] - first[i]
            total += deviation
            squares += deviation * deviation
        out[i] = squares - total * total * share
