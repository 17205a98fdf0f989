"""Exponentials and logarithms whose bits do not depend on the processor.

Those of libm and of numpy differ in the last bit from one processor to the next. Here both are polynomials of
sums and products alone, to about one unit of float64.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from submerge.deferred import np, npt
from submerge.kernels._kernel import kernel

__all__ = ["exponentials", "logarithms"]

Doubles: TypeAlias = "npt.NDArray[np.float64]"

LEAST = -708.0
"""The exponential of less is no normal number."""
LOG2_E = 1.4426950408889634
LN2_HIGH = float.fromhex("0x1.62e42fefap-1")  # 37 bits, so that products with whole numbers are exact
LN2_LOW = float.fromhex("0x1.cf79abc9e3b39p-40")
TAYLOR = tuple(1 / math.factorial(k) for k in range(13, -1, -1))
ARTANH = tuple(1 / k for k in range(21, 0, -2))
ROOT_HALF = 0x3FE6A09E667F3BCD  # the bits of √½
MANTISSA = 52
WHOLE = 1.5 * 2.0**52
"""A number that is added to a small one rounds it to a whole number."""


def _exponentials(values: Doubles) -> None:
    x = np.where(values > LEAST, values, LEAST)
    shifted = x * LOG2_E + WHOLE
    k = shifted - WHOLE
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    values[:] = 0
    for c in TAYLOR:
        np.add(values * r, c, out=values)
    values.view(np.int64)[:] += shifted.view(np.int64) << MANTISSA


@kernel(_exponentials)
def exponentials(values: Doubles) -> None:
    """Replace values [n] of float64 that are not positive by their exponentials; NaN counts as −∞.

    With x = k ln 2 + r and |r| ≤ ln(2)/2, the polynomial of r is a number near 1, to whose exponent k is
    added: the last bits of k + WHOLE are those of k, which no conversion to integers has to find.
    """
    bits = values.view(np.int64)
    for i in range(values.size):
        x = values[i] if values[i] > LEAST else LEAST
        values[i] = x * LOG2_E + WHOLE
        exponent = bits[i] << MANTISSA
        k = values[i] - WHOLE
        r = (x - k * LN2_HIGH) - k * LN2_LOW
        result = 0.0
        for c in TAYLOR:
            result = result * r + c
        values[i] = result
        bits[i] += exponent


def _logarithms(values: Doubles) -> None:
    bits = values.view(np.int64)
    exponent = (bits - ROOT_HALF) >> MANTISSA
    bits -= exponent << MANTISSA
    s = (values - 1) / (values + 1)
    result = np.zeros_like(s)
    for c in ARTANH:
        result = result * (s * s) + c
    values[:] = exponent * LN2_HIGH + (exponent * LN2_LOW + 2 * s * result)


@kernel(_logarithms)
def logarithms(values: Doubles) -> None:
    """Replace values [n] of float64, all positive normal numbers, by their natural logarithms.

    With x = 2^k m and √½ ≤ m < √2, ln m = 2 artanh s for s = (m − 1)/(m + 1), a series in s².
    """
    bits = values.view(np.int64)
    for i in range(values.size):
        exponent = (bits[i] - ROOT_HALF) >> MANTISSA
        bits[i] -= exponent << MANTISSA
        s = (values[i] - 1) / (values[i] + 1)
        result = 0.0
        for c in ARTANH:
            result = result * (s * s) + c
        values[i] = exponent * LN2_HIGH + (exponent * LN2_LOW + 2 * s * result)
