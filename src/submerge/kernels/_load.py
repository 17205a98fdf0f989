"""Values of files as rows of float32 or float64: every conversion is exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from submerge.deferred import np, npt
from submerge.kernels._finite import is_finite
from submerge.kernels._kernel import Kernel, kernel

__all__ = ["load"]

Array: TypeAlias = "npt.NDArray[Any]"


def _widen_bf16(raw: Array, row: Array) -> bool:
    bits = row.view(np.uint32)
    np.left_shift(raw, np.uint32(16), out=bits)
    return bool((bits & np.uint32(0x7FFFFFFF)).max(initial=0) < np.uint32(0x7F800000))


@kernel(_widen_bf16)
def widen_bf16(raw: Array, row: Array) -> bool:
    """Put bfloat16 values, as bits [n], into a row [n] of float32: they are its upper half.

    Return whether all are finite, as `is_finite` says it, in the same loop: it waits for memory.
    """
    greatest = np.uint32(0)
    for i in range(raw.size):
        bits = np.uint32(np.uint32(raw[i]) << np.uint32(16))
        row[i] = bits.view(np.float32)
        greatest = max(greatest, np.uint32(bits & np.uint32(0x7FFFFFFF)))
    return bool(greatest < np.uint32(0x7F800000))


def _subtract_bf16(raw: Array, origin: Array, row: Array) -> bool:
    finite = _widen_bf16(raw, row)
    np.subtract(row, origin, out=row)
    return finite


@kernel(_subtract_bf16)
def subtract_bf16(raw: Array, origin: Array, row: Array) -> bool:
    """Put bfloat16 values, as bits [n], less an origin [n], into a row [n], both of float32.

    Return whether all the values are finite.
    """
    greatest = np.uint32(0)
    for i in range(raw.size):
        bits = np.uint32(np.uint32(raw[i]) << np.uint32(16))
        row[i] = bits.view(np.float32) - origin[i]
        greatest = max(greatest, np.uint32(bits & np.uint32(0x7FFFFFFF)))
    return bool(greatest < np.uint32(0x7F800000))


def _widen_f16(raw: Array, row: Array) -> bool:
    np.copyto(row, raw.view(np.float16))
    return bool((raw & np.uint16(0x7FFF)).max(initial=0) < np.uint16(0x7C00))


@kernel(_widen_f16)
def widen_f16(raw: Array, row: Array) -> bool:
    """Put float16 values, as bits [n], into a row [n] of float32; return whether all are finite.

    Read as bits of float32, exponent and mantissa are the value divided by 2^112, the difference of the two
    biases, subnormal numbers too. ∞ and NaN have the largest exponent in either type.
    """
    greatest = np.uint32(0)
    for i in range(raw.size):
        magnitude = np.uint32(np.uint32(raw[i] & np.uint16(0x7FFF)) << np.uint32(13))
        greatest = max(greatest, magnitude)
        bits = np.float32(np.uint32(magnitude).view(np.float32) * np.float32(2.0**112)).view(np.uint32)
        special = magnitude >= np.uint32(0x1F << 23)
        exponent = np.uint32(0x7F800000) if special else np.uint32(0)
        sign = np.uint32(np.uint32(raw[i] & np.uint16(0x8000)) << np.uint32(16))
        row[i] = np.uint32(bits | exponent | sign).view(np.float32)
    return bool(greatest < np.uint32(0x1F << 23))


_WIDEN: Mapping[str, Kernel] = {"BF16": widen_bf16, "F16": widen_f16}


def load(code: str, raw: Array, row: Array, origin: Array | None = None) -> bool:
    """Put values [n] of a safetensors dtype, as `array_type` holds them, into a row of float32 or float64.

    Return whether all the values are finite.

    Less an origin [n] of the row's type, where there is one. The conversion rounds nothing. NaN stays NaN;
    with which bits is not said.

    Examples:
        >>> import numpy as np
        >>> from submerge.kernels import load
        >>> row = np.empty(2, np.float32)
        >>> load("BF16", np.array([0x3F80, 0xC000], np.uint16), row)
        True
        >>> row.tolist()
        [1.0, -2.0]
    """
    if code == "BF16" and row.itemsize == 4 and origin is not None:
        return bool(subtract_bf16(raw, origin, row))
    if code in _WIDEN:
        single = row if row.itemsize == 4 else np.empty(raw.size, np.float32)
        finite = bool(_WIDEN[code](raw, single))
        raw = single
    else:
        finite = is_finite(code, raw)
    if origin is not None:
        with np.errstate(all="ignore"):  # ∞ − ∞
            np.subtract(raw, origin, out=row)
    elif raw is not row:
        with np.errstate(invalid="ignore"):  # a signalling NaN
            np.copyto(row, raw)
    return finite
