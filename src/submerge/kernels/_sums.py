"""Sums of scaled runs."""

from __future__ import annotations

from typing import Any, TypeAlias

from submerge.deferred import np, npt
from submerge.kernels._kernel import kernel

__all__ = ["add_scaled", "scale"]

Floats: TypeAlias = "npt.NDArray[np.floating[Any]]"
Number: TypeAlias = "np.floating[Any]"


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
