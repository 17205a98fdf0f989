"""Counts of values around a bracket, and the values inside it."""

from __future__ import annotations

from submerge.deferred import np
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Number

__all__ = ["count_above", "count_around"]

BLOCK, PART = 64, 16
"""Values that are counted together before any is collected: most blocks have none inside the bracket, nor has
most of a block that has one. So only such parts are looked at one by one."""


def _count_around(
    values: Floats, lo: Number, hi: Number, inside: Floats, magnitudes: bool
) -> tuple[int, int, int, int]:
    values = np.abs(values) if magnitudes else values
    between = values[(values > lo) & (values < hi)]
    inside[: between.size] = between
    counts = (np.count_nonzero(mask) for mask in (values > hi, values >= hi, values > lo, values >= lo))
    above_hi, from_hi, above_lo, from_lo = map(int, counts)
    return above_hi, from_hi, above_lo, from_lo


@kernel(_count_around)
def count_around(
    values: Floats, lo: Number, hi: Number, inside: Floats, magnitudes: bool
) -> tuple[int, int, int, int]:
    """Return how many values [n], or their magnitudes, are > hi, ≥ hi, > lo and ≥ lo; collect those between.

    They are written, in their order, to the first places of `inside` [n], whose other places are
    overwritten. Four counts of a block are the four bytes of one number, so that they are added at once.
    """
    above_hi, from_hi, above_lo, from_lo = 0, 0, 0, 0
    place = np.uint64(0)
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        counts = np.uint32(0)
        for i in range(block.size):
            value = abs(block[i]) if magnitudes else block[i]
            bytes_ = np.uint32(value > hi) + (np.uint32(value >= hi) << np.uint32(8))
            bytes_ += (np.uint32(value > lo) << np.uint32(16)) + (np.uint32(value >= lo) << np.uint32(24))
            counts = np.uint32(counts + np.uint32(bytes_))
        above_hi += int(counts & 255)
        from_hi += int(counts >> 8 & 255)
        above_lo += int(counts >> 16 & 255)
        from_lo += int(counts >> 24)
        if counts >> 16 & 255 > counts >> 8 & 255:
            for first in range(0, block.size, PART):
                part = block[first : first + PART]
                count = np.uint32(0)
                for i in range(part.size):
                    value = abs(part[i]) if magnitudes else part[i]
                    count = np.uint32(count + np.uint32((value > lo) & (value < hi)))
                if count > 0:
                    for i in range(part.size):
                        value = abs(part[i]) if magnitudes else part[i]
                        inside[place] = value
                        place = np.uint64(place + np.uint64((value > lo) & (value < hi)))
    return above_hi, from_hi, above_lo, from_lo


def _count_above(values: Floats, bound: Number) -> int:
    return int(np.count_nonzero(values > bound))


@kernel(_count_above)
def count_above(values: Floats, bound: Number) -> int:
    """Return how many values [n] are greater than a bound."""
    total = 0
    for start in range(0, values.size, 4096):
        block = values[start : start + 4096]
        count = np.uint32(0)
        for i in range(block.size):
            count = np.uint32(count + np.uint32(block[i] > bound))
        total += int(count)
    return total
