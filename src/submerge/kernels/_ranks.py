"""Ranks by magnitude in rows, as far as they must be known to say which entries MagPrune keeps.

An entry is kept if its random word is below a bound that grows with its rank. To sort every row would take
several times as long as all else. Instead, entries are counted in buckets of magnitudes that have the same
leading bits, and the bounds of a bucket are bounds of its entries' ranks. An entry whose other bits are zero
is the smallest that its bucket can hold, and has a bucket of its own, where the places give the ranks: so
most ranks in updates of 16-bit weights, with their many equal entries, are exact. Only entries whose word
lies between the bounds for their lowest and their highest rank are ranked, by a count over the row.
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
BLOCK = 64
"""Entries that are compared together before any is collected."""
ROOM = 1 << 12
"""Entries whose ranks are bounded before they are compared, or one row of more."""
MANTISSA = {4: 23, 8: 52}
"""The bits of the mantissa of floats, by their bytes."""
OCTAVES = 8
"""Powers of two below the greatest magnitude of a row that are divided into levels."""
FINEST = 11
"""The most bits of the mantissa by which levels are told apart."""
SCANS = 64
"""The most counts over a row, on average, by which ranks are found; where it takes more, rows are sorted."""


def rank(bits: Bits, width: int, ranks: Words) -> None:
    """Write the rank [n] from 0 of each magnitude in its row of `width`, by a sort; see `bound_ranks`."""
    rows = bits.reshape(-1, width)
    ascending = np.broadcast_to(np.arange(width, dtype=np.uint32), rows.shape)
    np.put_along_axis(ranks.reshape(rows.shape), _ascending(rows), ascending, axis=1)


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


def _bound_ranks(bits: Bits, width: int, shift: int, levels: int, low: Words, high: Words) -> None:
    rank(bits, width, low)
    high[:] = low


@kernel(_bound_ranks)
def bound_ranks(bits: Bits, width: int, shift: int, levels: int, low: Words, high: Words) -> None:
    """Write bounds, low [n] and high [n], of the rank from 0 of each magnitude in its row of `width`.

    Of equal magnitudes the later has the greater rank. `shift` leaves the leading bits, of which there are
    `levels` from the greatest of the row downwards: level k has the buckets 2k, of entries with other bits,
    and 2k + 1, of those without. Smaller magnitudes have the last bucket but one, zeros the last.
    """
    rest, zeros = np.uint32(2 * levels), np.uint32(2 * levels + 1)
    counts, starts = np.empty(2 * levels + 2, np.uint32), np.empty(2 * levels + 2, np.uint32)
    of = np.empty(width, np.uint32)
    by = bits.dtype.type(shift)
    for first in range(0, bits.size, width):
        row, stop = bits[first : first + width], first + width
        lowest, highest = low[first:stop], high[first:stop]
        greatest = bits.dtype.type(0)
        for i in range(width):
            greatest = max(greatest, row[i])
        top = np.uint32(greatest >> by)
        for i in range(width):
            leading = row[i] >> by
            equal = np.uint32((leading << by) == row[i])
            bucket = min(np.uint32(np.uint32(top - np.uint32(leading)) << np.uint32(1)) | equal, rest)
            of[i] = zeros if row[i] == 0 else np.uint32(bucket)
        counts[:] = 0
        for i in range(width):
            lowest[i] = counts[of[i]]
            counts[of[i]] += np.uint32(1)
        start = np.uint32(width)
        for b in range(counts.size):
            start = np.uint32(start - counts[b])
            starts[b] = start
        for i in range(width):
            equal = (of[i] & np.uint32(1)) == 1
            lowest[i] = np.uint32(starts[of[i]] + (lowest[i] if equal else np.uint32(0)))
            others = np.uint32(0) if equal else np.uint32(counts[of[i]] - np.uint32(1))
            highest[i] = np.uint32(lowest[i] + others)


def _compare_at_bounds(
    words: Words, low: Words, high: Words, least: float, step: float, keep: Bytes, open_: Words
) -> int:
    keep[:] = words < least + step * low
    undecided = np.flatnonzero((words < least + step * high) & (keep == 0))
    open_[: undecided.size] = undecided
    return int(undecided.size)


@kernel(_compare_at_bounds)
def compare_at_bounds(
    words: Words, low: Words, high: Words, least: float, step: float, keep: Bytes, open_: Words
) -> int:
    """Write whether words [n] are below least + step · rank, and return how many comparisons are open.

    Those whose rank may be `low` or `high` with another outcome are open: their places are written to the
    first ones of `open_` [n], whose others are overwritten, and 0 is written meanwhile.
    """
    place = np.uint64(0)
    for start in range(0, words.size, BLOCK):
        block, kept = words[start : start + BLOCK], keep[start : start + BLOCK]
        lowest, highest = low[start : start + BLOCK], high[start : start + BLOCK]
        count = np.uint32(0)
        for i in range(block.size):
            word = np.float64(block[i])
            surely = np.uint32(word < least + step * np.float64(lowest[i]))
            count = np.uint32(count + (np.uint32(word < least + step * np.float64(highest[i])) - surely))
            kept[i] = np.uint8(surely)
        if count > 0:
            for i in range(block.size):
                open_[place] = np.uint32(start + i)
                possible = np.float64(block[i]) < least + step * np.float64(highest[i])
                place = np.uint64(place + np.uint64(possible & (kept[i] == 0)))
    return int(place)


def _compare_open(
    bits: Bits, width: int, words: Words, least: float, step: float, keep: Bytes, open_: Words
) -> None:
    for place in open_.tolist():
        first = place // width * width
        before, own = bits[first:place], bits[place]
        rank = np.count_nonzero(bits[first : first + width] < own) + np.count_nonzero(before == own)
        keep[place] = words[place] < least + step * rank


@kernel(_compare_open)
def compare_open(
    bits: Bits, width: int, words: Words, least: float, step: float, keep: Bytes, open_: Words
) -> None:
    """Write whether the words at open places are below least + step · rank, by a count over their rows."""
    for k in range(open_.size):
        place = np.int64(open_[k])
        first = place // width * width
        row, before, own = bits[first : first + width], bits[first:place], bits[place]
        count = np.uint32(0)
        for i in range(row.size):
            count = np.uint32(count + np.uint32(row[i] < own))
        for i in range(before.size):
            count = np.uint32(count + np.uint32(before[i] == own))
        keep[place] = np.uint8(np.float64(words[place]) < least + step * np.float64(count))


def keep_by_rank(values: Floats, width: int, words: Words, least: float, step: float, keep: Bytes) -> None:
    """Write whether words [n] are below least + step · rank, for ranks by magnitude in rows of `width`.

    Ranks count from 0, the smallest; of equal magnitudes the later has the greater rank. NaN is the greatest.

    Args:
        values: [n], a whole number of rows.
        keep: 1 or 0 [n].
    """
    bits = values.view(f"u{values.itemsize}")
    mask = bits.dtype.type((1 << 8 * values.itemsize - 1) - 1)
    fine = min(FINEST, max(0, width.bit_length() - 6))  # some four buckets for each eight entries of a row
    size = width * max(1, ROOM // width)
    unsettled = np.empty(-(-bits.size // size), np.uint8)
    shift = MANTISSA[values.itemsize] - fine
    settle(bits, mask, width, shift, OCTAVES << fine, words, least, step, keep, unsettled)
    for k in np.flatnonzero(unsettled).tolist():
        block = slice(k * size, (k + 1) * size)
        ranks = np.empty_like(words[block])
        rank(bits[block] & mask, width, ranks)
        keep[block] = words[block] < least + step * ranks


def _settle(
    bits: Bits,
    mask: Any,
    width: int,
    shift: int,
    levels: int,
    words: Words,
    least: float,
    step: float,
    keep: Bytes,
    unsettled: Bytes,
) -> None:
    ranks = np.empty_like(words)
    rank(bits & mask, width, ranks)
    keep[:] = words < least + step * ranks
    unsettled[:] = 0


@kernel(_settle)
def settle(
    bits: Bits,
    mask: Any,
    width: int,
    shift: int,
    levels: int,
    words: Words,
    least: float,
    step: float,
    keep: Bytes,
    unsettled: Bytes,
) -> None:
    """Do what `keep_by_rank` does, but for blocks where too many entries have the same leading bits.

    Rows are compared by blocks, so that what is written meanwhile stays in the cache. A block is marked by 1
    and left where more than `SCANS` comparisons a row are open.
    """
    size = width * max(1, ROOM // width)
    magnitudes = np.empty(min(size, bits.size), bits.dtype)
    low, high = np.empty(magnitudes.size, np.uint32), np.empty(magnitudes.size, np.uint32)
    places = np.empty(magnitudes.size, np.uint32)
    for k in range(unsettled.size):
        start, stop = k * size, min((k + 1) * size, bits.size)
        n = stop - start
        part, own, kept = bits[start:stop], words[start:stop], keep[start:stop]
        for i in range(n):
            magnitudes[i] = part[i] & mask
        bound_ranks(magnitudes[:n], width, shift, levels, low[:n], high[:n])
        count = compare_at_bounds(own, low[:n], high[:n], least, step, kept, places)
        unsettled[k] = count * width > SCANS * n
        if unsettled[k] == 0:
            compare_open(magnitudes[:n], width, own, least, step, kept, places[:count])
