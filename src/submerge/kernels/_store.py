"""Rows as values of files: rounded to the nearest, to even where two are as near."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from submerge.deferred import np, npt
from submerge.kernels._finite import is_finite
from submerge.kernels._kernel import Kernel, kernel

__all__ = ["store"]

Array: TypeAlias = "npt.NDArray[Any]"


def _nearest_bf16(row: Array) -> Array:
    bits = row.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(row), np.uint32(0x7FC0), rounded).astype(np.uint16)


@kernel(_nearest_bf16)
def nearest_bf16(value: Any) -> Any:
    """Return the bits of the bfloat16 number that is nearest to a float32; 0x7FC0 for each NaN.

    What is cut off is rounded by a carry: one less than a half is added, and one more to odd numbers.
    A carry out of the mantissa is the next exponent, and that out of the largest is ∞.
    """
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd) >> np.uint32(16)
    nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(0x7FC0) if nan else np.uint32(rounded))


def _nearest_f16(row: Array) -> Array:
    halves = row.astype(np.float16)
    return np.where(np.isnan(halves), np.uint16(0x7E00), halves.view(np.uint16))


@kernel(_nearest_f16)
def nearest_f16(value: Any) -> Any:
    """Return the bits of the float16 number that is nearest to a float32; 0x7E00 for each NaN.

    Normal numbers are rounded by a carry (see `nearest_bf16`) after the bias, 127, was made that of float16,
    15. Below 2^-14 numbers are multiples of 2^-24, as float32 has them between 1/2 and 1: there an addition
    rounds them.
    """
    bits = np.float32(value).view(np.uint32)
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    odd = np.uint32(magnitude >> np.uint32(13)) & np.uint32(1)
    biased = np.uint32(magnitude - np.uint32((127 - 15) << 23))
    normal = np.uint32(np.uint32(biased + np.uint32(0xFFF)) + odd) >> np.uint32(13)
    above_half = np.uint32(magnitude).view(np.float32) + np.float32(0.5)
    subnormal = np.uint32(np.float32(above_half).view(np.uint32) - np.float32(0.5).view(np.uint32))
    rounded = subnormal if magnitude < np.uint32((127 - 14) << 23) else np.uint32(normal)
    rounded = rounded if magnitude < np.uint32((127 + 16) << 23) else np.uint32(0x7C00)
    sign = np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000)
    nan = magnitude > np.uint32(0x7F800000)
    return np.uint16(np.uint32(0x7E00) if nan else np.uint32(rounded | sign))


def _round_bf16(row: Array, out: Array) -> bool:
    out[:] = _nearest_bf16(row)
    return is_finite("BF16", out)


@kernel(_round_bf16)
def round_bf16(row: Array, out: Array) -> bool:
    """Round a row [n] of float32 to bfloat16, as bits [n]; return whether all that comes out is finite."""
    greatest = np.uint16(0)
    for i in range(row.size):
        bits = nearest_bf16(row[i])
        out[i] = bits
        greatest = max(greatest, np.uint16(bits & np.uint16(0x7FFF)))
    return bool(greatest < np.uint16(0x7F80))


def _add_bf16(row: Array, origin: Array, out: Array) -> bool:
    return _round_bf16(row + origin, out)


@kernel(_add_bf16)
def add_bf16(row: Array, origin: Array, out: Array) -> bool:
    """Round row + origin [n], of float32, to bfloat16, as bits [n]; return whether all are finite."""
    greatest = np.uint16(0)
    for i in range(row.size):
        bits = nearest_bf16(row[i] + origin[i])
        out[i] = bits
        greatest = max(greatest, np.uint16(bits & np.uint16(0x7FFF)))
    return bool(greatest < np.uint16(0x7F80))


def _round_f16(row: Array, out: Array) -> bool:
    out[:] = _nearest_f16(row)
    return is_finite("F16", out)


@kernel(_round_f16)
def round_f16(row: Array, out: Array) -> bool:
    """Round a row [n] of float32 to float16, as bits [n]; return whether all that comes out is finite."""
    greatest = np.uint16(0)
    for i in range(row.size):
        bits = nearest_f16(row[i])
        out[i] = bits
        greatest = max(greatest, np.uint16(bits & np.uint16(0x7FFF)))
    return bool(greatest < np.uint16(0x7C00))


_ROUND: Mapping[str, Kernel] = {"BF16": round_bf16, "F16": round_f16}


def store(code: str, row: Array, out: Array, origin: Array | None = None) -> bool:
    """Round a row of float32 or float64 to values [n] of a safetensors dtype; return whether all are finite.

    float64 is rounded to 16 bits by way of float32, as torch does. What is too large becomes ∞, and all NaN
    become one, whose sign and lower bits are 0: processors do not agree on those of a sum.

    Args:
        code: the dtype.
        row: the values; with an origin they are overwritten.
        out: as `array_type` holds them.
        origin: is added first, [n], of the row's type or a narrower one.

    Examples:
        >>> import numpy as np
        >>> from submerge.kernels import store
        >>> out = np.empty(2, np.uint16)
        >>> store("BF16", np.array([1.0, np.inf], np.float32), out), [hex(bits) for bits in out]
        (False, ['0x3f80', '0x7f80'])
    """
    if code == "BF16" and origin is not None and row.dtype == origin.dtype == np.float32:
        return bool(add_bf16(row, origin, out))
    with np.errstate(all="ignore"):  # ∞ − ∞, what is too large, and a signalling NaN
        if origin is not None:
            np.add(row, origin, out=row)
        if code in _ROUND:
            return bool(_ROUND[code](row.astype(np.float32, copy=False), out))
        np.copyto(out, row, casting="same_kind")
    if is_finite(code, out):
        return True
    out[np.isnan(out)] = np.nan
    return False
