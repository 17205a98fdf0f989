"""Random words by position: a hash of the position, with a key.

Word i is a hash of 32 bits of i, keyed by three further words: a Weyl sequence (i times an odd number near
2³² over the golden ratio), then two rounds of a multiplication between shifts (the constants are those of
C. Wellons' lowbias32, 2018), with a word of the key added before each round and after the last. So it is a
permutation of the positions 0 … 2³² − 1, another one for each key. Without the Weyl sequence, words of
positions that differ in one bit are not independent.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from submerge.deferred import np
from submerge.kernels._kernel import kernel
from submerge.kernels._products import RUN, _sum, add_run
from submerge.kernels._types import Floats, Number, Words

__all__ = ["HashKey", "keep_random", "masked_norms", "random_words"]

HashKey: TypeAlias = "tuple[np.uint32, np.uint32, np.uint32]"

STEP, FIRST, SECOND = 0x9E3779B1, 0x7FEB352D, 0x846CA68B


def _mixed(term: Any, key: HashKey) -> Any:
    word = np.uint32(np.uint32((term ^ (term >> np.uint32(16))) * np.uint32(FIRST)) + key[1])
    word = np.uint32(np.uint32((word ^ (word >> np.uint32(15))) * np.uint32(SECOND)) + key[2])
    return word ^ (word >> np.uint32(16))


mixed = kernel(_mixed)(_mixed)  # of a number or an array


def _words(first: np.uint32, count: int, key: HashKey) -> Words:
    positions = np.arange(int(first), int(first) + count, dtype=np.uint64).astype(np.uint32)
    words: Words = _mixed(positions * np.uint32(STEP) + key[0], key)
    return words


def _random_words(out: Words, first: np.uint32, key: HashKey) -> None:
    out[:] = _words(first, out.size, key)


@kernel(_random_words)
def random_words(out: Words, first: np.uint32, key: HashKey) -> None:
    """Write the words of positions `first` … `first` + n − 1 into out [n]."""
    term = np.uint32(np.uint32(first * np.uint32(STEP)) + key[0])
    for i in range(out.size):
        out[i] = np.uint32(mixed(term, key))
        term = np.uint32(term + np.uint32(STEP))


def _keep_random(
    values: Floats, first: np.uint32, key: HashKey, threshold: np.uint32, factor: Number
) -> None:
    words = _words(first, values.size, key)
    np.multiply(values, np.where(words < threshold, factor, values.dtype.type(0)), out=values)


@kernel(_keep_random)
def keep_random(values: Floats, first: np.uint32, key: HashKey, threshold: np.uint32, factor: Number) -> None:
    """Multiply the values [n] whose words are below a threshold by a factor, and the others by 0."""
    zero = values.dtype.type(0)
    term = np.uint32(np.uint32(first * np.uint32(STEP)) + key[0])
    for i in range(values.size):
        values[i] *= factor if np.uint32(mixed(term, key)) < threshold else zero
        term = np.uint32(term + np.uint32(STEP))


def _masked_norms(
    values: Floats, first: np.uint32, key: HashKey, threshold: np.uint32
) -> tuple[float, float]:
    kept = values.copy()
    _keep_random(kept, first, key, threshold, values.dtype.type(1))
    return _sum(np.abs(values)), _sum(np.abs(kept))


@kernel(_masked_norms)
def masked_norms(values: Floats, first: np.uint32, key: HashKey, threshold: np.uint32) -> tuple[float, float]:
    """Return Σ |x_i| of values [n] as `sum_magnitudes` does, and of what `keep_random` makes of them."""
    zero, one = values.dtype.type(0), values.dtype.type(1)
    terms, kept = np.empty(RUN, values.dtype), np.empty(RUN, values.dtype)
    total, total_kept = 0.0, 0.0
    term = np.uint32(np.uint32(first * np.uint32(STEP)) + key[0])
    for start in range(0, values.size, RUN):
        x = values[start : start + RUN]
        for i in range(x.size):
            magnitude = abs(x[i])
            terms[i] = magnitude
            kept[i] = magnitude * (one if np.uint32(mixed(term, key)) < threshold else zero)
            term = np.uint32(term + np.uint32(STEP))
        terms[x.size :], kept[x.size :] = zero, zero
        total, total_kept = add_run(total, terms), add_run(total_kept, kept)
    return total, total_kept
