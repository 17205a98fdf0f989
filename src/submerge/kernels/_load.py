"""Values of files as rows of float32 or float64: every conversion is exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from submerge.deferred import np, npt
from submerge.kernels._kernel import Kernel, kernel

__all__ = ["load"]

Array: TypeAlias = "npt.NDArray[Any]"


def _widen_bf16(raw: Array, row: Array) -> None:
    np.left_shift(raw, np.uint32(16), out=row.view(np.uint32))


@kernel(_widen_bf16)
def widen_bf16(raw: Array, row: Array) -> None:
    """Put bfloat16 values, as bits [n], into a row [n] of float32: its upper half."""
    bits = row.view(np.uint32)
    for i in range(raw.size):
        bits[i] = np.uint32(raw[i]) << np.uint32(16)


def _widen_f16(raw: Array, row: Array) -> None:
    np.copyto(row, raw.view(np.float16))


@kernel(_widen_f16)
def widen_f16(raw: Array, row: Array) -> None:
    """Put float16 values, as bits [n], into a row [n] of float32.

    Read as bits of float32, exponent and mantissa are the value divided by 2^112, the difference of the two
    biases, subnormal numbers too. ∞ and NaN have the largest exponent in either type.
    """
    bits = row.view(np.uint32)
    for i in range(raw.size):
        bits[i] = np.uint32(raw[i] & np.uint16(0x7FFF)) << np.uint32(13)
        row[i] *= np.float32(2.0**112)
        special = (raw[i] & np.uint16(0x7C00)) == np.uint16(0x7C00)
        exponent = np.uint32(0x7F800000) if special else np.uint32(0)
        bits[i] |= exponent | (np.uint32(raw[i] & np.uint16(0x8000)) << np.uint32(16))


_WIDEN: Mapping[str, Kernel] = {"BF16": widen_bf16, "F16": widen_f16}


def load(code: str, raw: Array, row: Array) -> None:
    """Put values [n] of a safetensors dtype, as `array_type` holds them, into a row of float32 or float64.

    Nothing is rounded. NaN stays NaN; with which bits is not said.

    Examples:
        >>> import numpy as np
        >>> from submerge.kernels import load
        >>> row = np.empty(2, np.float32)
        >>> load("BF16", np.array([0x3F80, 0xC000], np.uint16), row)
        >>> row.tolist()
        [1.0, -2.0]
    """
    widen = _WIDEN.get(code)
    if widen is not None and row.dtype == np.float32:
        widen(raw, row)
        return
    if widen is not None:
        single = np.empty(raw.size, np.float32)
        widen(raw, single)
        raw = single
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        np.copyto(row, raw)
