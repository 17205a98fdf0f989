"""Comparisons of random entries, which keep an entry as often as its rank by magnitude in its row says.

MagPrune keeps the entry of rank r, from 0, in a row of n with probability p + q r / (n − 1). No rank has to
be known for that: r of the other n − 1 entries come before it, so that one of them, drawn at random, does so
with probability r / (n − 1). An entry is kept with probability p; else, with probability q, if a random other
entry of its row comes before it. One random word decides all of it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from submerge.deferred import np, npt
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats, Words

__all__ = ["keep_by_rank", "rank"]

Bits: TypeAlias = "npt.NDArray[np.unsignedinteger[Any]]"
"""Magnitudes of floats as integers, which ascend with them: uint32 of float32, uint64 of float64."""
Bytes: TypeAlias = "npt.NDArray[np.uint8]"
BLOCK = 2048
"""Entries whose partners are drawn before any is looked up: one loop for each step, so that all vectorise."""
WORDS = 1 << 32
"""How many words there are."""


def rank(values: Floats, width: int) -> Words:
    """Return the rank [n] from 0 of each value by magnitude in its row of `width`, uint32.

    Of equal magnitudes the later has the greater rank. NaN is the greatest.
    """
    rows = np.abs(values).view(f"u{values.itemsize}").reshape(-1, width)
    ranks = np.empty(rows.shape, np.uint32)
    ascending = np.broadcast_to(np.arange(width, dtype=np.uint32), rows.shape)
    np.put_along_axis(ranks, _ascending(rows), ascending, axis=1)
    return ranks.reshape(-1)


def _ascending(rows: Bits) -> npt.NDArray[np.signedinteger[Any]]:
    """Return the places of each row's entries from the smallest to the largest, equal ones in their order.

    32 bits of magnitude above 32 bits of place are integers that any sort puts in this order, and those of
    integers are many times as fast as a stable one.
    """
    if rows.dtype != np.uint32:
        return np.argsort(rows, axis=1, kind="stable")
    keys = rows.astype(np.int64) << 32
    keys |= np.arange(rows.shape[1], dtype=np.int64)
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys


def keep_by_rank(values: Floats, width: int, words: Words, least: float, most: float, keep: Bytes) -> None:
    """Write which entries [n] are kept, by one random word [n] for each: 1 or 0.

    The probability rises by equal steps with the rank of the value's magnitude in its row: from `least` to
    `most`, which is below 1. Rows have a `width` of two or more.
    """
    always = int(least * WORDS)
    drawn = int(most * WORDS) - always
    factor, shift = _reciprocal(drawn, width - 1)
    arguments = np.uint32(always), np.uint32(drawn), np.uint64(factor), np.uint64(shift)
    bits = values.view(f"u{values.itemsize}")
    magnitude = bits.dtype.type((1 << 8 * values.itemsize - 1) - 1)
    keep_by_partner(bits, magnitude, width, words, *arguments, keep)


def _reciprocal(size: int, count: int) -> tuple[int, int]:
    """Return (f, s) with which f x >> s divides 0 … size − 1 into `count` equal parts, f below 2³²."""
    if not size:
        return 0, 0
    shift = 31 + size.bit_length() - count.bit_length()
    return (count << shift) // size, shift


def _keep_by_partner(
    bits: Bits,
    magnitude: Any,
    width: int,
    words: Words,
    always: np.uint32,
    drawn: np.uint32,
    factor: np.uint64,
    shift: np.uint64,
    keep: Bytes,
) -> None:
    magnitudes = bits & magnitude
    offsets = words - always
    is_drawn = offsets < drawn
    places = np.arange(words.size, dtype=np.int64) % width
    partners = (np.where(is_drawn, offsets, 0).astype(np.uint64) * factor >> shift).astype(np.int64)
    partners += partners >= places
    theirs = np.take_along_axis(magnitudes.reshape(-1, width), partners.reshape(-1, width), 1).reshape(-1)
    is_above = (theirs < magnitudes) | ((theirs == magnitudes) & (partners < places))
    keep[:] = (words < always) | (is_drawn & is_above)


@kernel(_keep_by_partner)
def keep_by_partner(
    bits: Bits,
    magnitude: Any,
    width: int,
    words: Words,
    always: np.uint32,
    drawn: np.uint32,
    factor: np.uint64,
    shift: np.uint64,
    keep: Bytes,
) -> None:
    """Write which entries [n] are kept: 1 or 0.

    Those whose word is below `always` are. The next `drawn` words stand for the others of the row, in equal
    shares: an entry with such a word is kept if that one is smaller, or as large and before it.

    Args:
        bits: those of floats [n], of which `magnitude` has all but the sign.
    """
    partners, theirs = np.empty(min(BLOCK, width), np.uint32), np.empty(min(BLOCK, width), bits.dtype)
    for first in range(0, bits.size, width):
        row = bits[first : first + width]
        for start in range(0, width, BLOCK):
            own = row[start : start + BLOCK]
            block = slice(first + start, first + start + own.size)
            word, kept = words[block], keep[block]
            for i in range(own.size):
                offset = np.uint32(word[i] - always)
                partner = np.uint32(np.uint64(offset if offset < drawn else np.uint32(0)) * factor >> shift)
                partners[i] = np.uint32(partner + np.uint32(partner >= np.uint32(start + i)))
            for i in range(own.size):
                theirs[i] = row[partners[i]] & magnitude
            for i in range(own.size):
                before = bits.dtype.type(partners[i] < np.uint32(start + i))
                is_above = theirs[i] < (own[i] & magnitude) + before
                kept[i] = word[i] < np.uint32(always + (drawn if is_above else np.uint32(0)))
