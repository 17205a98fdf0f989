"""Masks on runs of values, by magnitude and as told, and limits of magnitudes."""

from __future__ import annotations

from submerge.deferred import np, npt
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

__all__ = ["clip", "keep_between", "keep_where"]


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


def _keep_where(values: Floats, keep: npt.NDArray[np.uint8]) -> None:
    np.multiply(values, keep, out=values, dtype=values.dtype)


@kernel(_keep_where)
def keep_where(values: Floats, keep: npt.NDArray[np.uint8]) -> None:
    """Multiply the values [n] by 1 or 0, in place."""
    for i in range(values.size):
        values[i] *= values.dtype.type(keep[i])


def _clip(values: Floats, most: Number) -> None:
    np.clip(values, -most, most, out=values)


@kernel(_clip)
def clip(values: Floats, most: Number) -> None:
    """Limit the values [n] to −most … most, in place; NaN stays NaN."""
    for i in range(values.size):
        value = values[i]
        value = most if value > most else value
        values[i] = -most if value < -most else value
