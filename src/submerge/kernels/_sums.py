"""Sums of scaled runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from submerge.deferred import np, npt
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

if TYPE_CHECKING:
    Words16 = tuple[npt.NDArray[np.uint16], ...]

__all__ = ["MOST_RAWS", "MOST_ROWS", "add_rows", "scale", "sum_bf16", "sum_updates_bf16"]

MOST_ROWS = 8
"""The most rows that a kernel takes as a tuple. The compiler unrolls the loop over a tuple, so that the sums
stay in registers, up to about this length; a longer one would be copied for each element."""
MOST_RAWS = 4
"""The most rows that are converted and summed in one loop: one of more is not vectorised."""


def _scale(values: Floats, factor: Number) -> None:
    np.multiply(values, factor, out=values)


@kernel(_scale)
def scale(values: Floats, factor: Number) -> None:
    """Multiply values [n] by a factor of their type, in place."""
    for i in range(values.size):
        values[i] *= factor


def _add_scaled(total: Floats, values: Floats, factor: Number) -> None:
    np.add(total, values * factor, out=total)


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


def _sum_bf16(total: Floats, raws: Words16, factors: tuple[Number, ...], more: bool) -> bool:
    return _sum_updates_bf16(total, np.zeros_like(total), raws, factors, more)


@kernel(_sum_bf16)
def sum_bf16(total: Floats, raws: Words16, factors: tuple[Number, ...], more: bool) -> bool:
    """Set a total [n] of float32 to Σ factors_t raws_t, of bfloat16 values as bits, added in order.

    With `more` they are added to the total. One to `MOST_RAWS` of them. Return whether all are finite. The
    bits are those of `add_rows` over rows that `widen_bf16` fills, which takes twice as long: here no row is
    written, and none is read again.
    """
    greatest = np.uint32(0)
    for i in range(total.size):
        value = total[i] if more else np.float32(-0.0)  # with which every number is itself, −0 too
        for t in range(len(raws)):
            bits = np.uint32(np.uint32(raws[t][i]) << np.uint32(16))
            value += bits.view(np.float32) * factors[t]
            greatest = max(greatest, np.uint32(bits & np.uint32(0x7FFFFFFF)))
        total[i] = value
    return bool(greatest < np.uint32(0x7F800000))


def _sum_updates_bf16(
    total: Floats, origin: Floats, raws: Words16, factors: tuple[Number, ...], more: bool
) -> bool:
    finite = True
    if not more:
        total[:] = -0.0
    for raw, c in zip(raws, factors, strict=True):
        bits = raw.astype(np.uint32) << np.uint32(16)
        finite &= bool((bits & np.uint32(0x7FFFFFFF)).max(initial=0) < np.uint32(0x7F800000))
        _add_scaled(total, bits.view(np.float32) - origin, c)
    return finite


@kernel(_sum_updates_bf16)
def sum_updates_bf16(
    total: Floats, origin: Floats, raws: Words16, factors: tuple[Number, ...], more: bool
) -> bool:
    """Set a total [n] to Σ factors_t (raws_t − origin), as `sum_bf16` does, for an origin [n] of float32."""
    greatest = np.uint32(0)
    for i in range(total.size):
        value = total[i] if more else np.float32(-0.0)  # with which every number is itself, −0 too
        for t in range(len(raws)):
            bits = np.uint32(np.uint32(raws[t][i]) << np.uint32(16))
            value += (bits.view(np.float32) - origin[i]) * factors[t]
            greatest = max(greatest, np.uint32(bits & np.uint32(0x7FFFFFFF)))
        total[i] = value
    return bool(greatest < np.uint32(0x7F800000))
