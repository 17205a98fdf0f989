"""NaN and Inf among values, in the type in which a file has them."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, TypeAlias

from submerge.deferred import np, npt
from submerge.kernels._kernel import kernel

__all__ = ["array_type", "count_nonfinite", "is_finite"]

Array: TypeAlias = "npt.NDArray[Any]"


class _Bits(NamedTuple):
    """How a type of floats is held and looked at: `array` by arrays, and its bits by integers."""

    array: np.dtype[Any]
    unsigned: np.dtype[Any]
    magnitude: Any  # all bits but the sign
    infinity: Any

    @classmethod
    def of(cls, array: str, mantissa: int) -> _Bits:
        unsigned = np.dtype(f"u{np.dtype(array).itemsize}")
        sign = 1 << (8 * unsigned.itemsize - 1)
        return cls(np.dtype(array), unsigned, unsigned.type(sign - 1), unsigned.type(sign - (1 << mantissa)))


@cache
def _bits(code: str) -> _Bits:
    return _Bits.of(*{"BF16": ("u2", 7), "F16": ("u2", 10), "F32": ("f4", 23), "F64": ("f8", 52)}[code])


def array_type(code: str) -> np.dtype[Any]:
    """Return the type of arrays that hold values of a safetensors dtype: "BF16" and "F16" as their bits.

    Examples:
        >>> from submerge.kernels import array_type
        >>> array_type("BF16"), array_type("F64")
        (dtype('uint16'), dtype('float64'))
    """
    return _bits(code).array


def _greatest(bits: Array, mask: Any) -> Any:
    return np.bitwise_and(bits, mask).max(initial=0)


@kernel(_greatest)
def greatest(bits: Array, mask: Any) -> Any:
    """Return the greatest of bits & mask, for unsigned integers [n] and one of their type; 0 for none."""
    result = bits.dtype.type(0)
    for i in range(bits.size):
        result = max(result, bits.dtype.type(bits[i] & mask))
    return result


def is_finite(code: str, values: Array) -> bool:
    """Return whether none of the values [n] of a safetensors dtype is NaN or Inf.

    Without their signs, bits of floats ascend with the values; above the largest number stand Inf and NaN.
    """
    kind = _bits(code)
    return bool(greatest(values.view(kind.unsigned), kind.magnitude) < kind.infinity)


def count_nonfinite(code: str, values: Array) -> int:
    """Return how many of the values [n] of a safetensors dtype are NaN or Inf.

    Examples:
        >>> import numpy as np
        >>> from submerge.kernels import count_nonfinite
        >>> count_nonfinite("BF16", np.array([0x3F80, 0xFF80, 0x7FC0], np.uint16))  # 1, −∞, NaN
        2
    """
    if is_finite(code, values):
        return 0
    kind = _bits(code)
    return int(np.count_nonzero(values.view(kind.unsigned) & kind.infinity == kind.infinity))
