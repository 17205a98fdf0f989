"""Random numbers by position: number i of a stream can be had without the i − 1 before it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from submerge import kernels
from submerge.deferred import np, npt, torch
from submerge.deprecated import warn_renamed

__all__ = [
    "bernoulli",
    "coins",
    "keep_random",
    "masked_norms",
    "normal",
    "random_words",
    "stream_key",
    "uniform",
]

_BLOCK = 1 << 32
"""The positions that one key of the hash covers: it hashes 32 bits."""
_SUMMED = 12
"""Words in the sum that stands for a normal number: the variance of a uniform one is 1/12."""


def stream_key(seed: int, name: str, model: int) -> int:
    """Return the 128-bit key of the stream for one model's update of the tensor called `name`.

    Examples:
        >>> from submerge.algebra import stream_key
        >>> stream_key(seed=0, name="weight", model=0) == stream_key(seed=0, name="weight", model=1)
        False
    """
    text = f"{seed}\0{name}\0{model}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


@lru_cache(maxsize=1024)
def _hash_key(key: int, block: int) -> kernels.HashKey:
    """Return the three words that key the hash of the positions of a block."""
    data = key.to_bytes(16, "little") + block.to_bytes(8, "little")
    digest = hashlib.blake2b(data, digest_size=12).digest()
    first, second, third = (np.uint32(int.from_bytes(digest[k : k + 4], "little")) for k in (0, 4, 8))
    return first, second, third


def _runs(key: int, start: int, count: int) -> list[tuple[slice, np.uint32, kernels.HashKey]]:
    """Return for each block that holds some of the positions which they are, the first one in it, its key."""
    runs, done = [], 0
    while done < count:
        block, first = divmod(start + done, _BLOCK)
        until = min(count, done + _BLOCK - first)
        runs.append((slice(done, until), np.uint32(first), _hash_key(key, block)))
        done = until
    return runs


def random_words(key: int, start: int, out: npt.NDArray[np.uint32]) -> None:
    """Write words start … start + n − 1 of the stream, of 32 bits, into out [n].

    A word is a hash of its position of 64 bits, keyed by the stream: so chunks may be drawn in any order, by
    any thread, in any length, and the concatenation is always the same.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import random_words, stream_key
        >>> words = np.empty(3, np.uint32)
        >>> random_words(stream_key(0, "weight", 0), 5, words)
        >>> bool((words != 0).all())
        True
    """
    for places, first, hash_key in _runs(key, start, out.size):
        kernels.random_words(out[places], first, hash_key)


def uniform(key: int, start: int, count: int) -> torch.Tensor:
    """Return numbers start … start + count − 1 of the stream, in [0, 1), float32; resolution 2⁻²⁴.

    Examples:
        >>> import torch
        >>> from submerge.algebra import stream_key, uniform
        >>> key = stream_key(0, "weight", 0)
        >>> torch.equal(uniform(key, 0, 10)[6:], uniform(key, 6, 4))
        True
    """
    words = np.empty(count, np.uint32)
    random_words(key, start, words)
    words >>= np.uint32(8)
    return torch.from_numpy(words.astype(np.float32)).mul_(2.0**-24)


def normal(key: int, start: int, count: int) -> npt.NDArray[np.float32]:
    """Return numbers start … start + count − 1 of the stream, of mean 0 and variance 1, float32.

    Each is the sum of 12 uniform numbers less 6, whose distribution is close to the normal one up to about
    three standard deviations, and ends at six. The sum is of whole numbers, and so the same on every
    processor; logarithms and cosines, of which normal numbers are made otherwise, are not.

    Examples:
        >>> from submerge.algebra import normal, stream_key
        >>> numbers = normal(stream_key(0, "weight", 0), 0, 10_000)
        >>> bool(abs(numbers.mean()) < 0.03), bool(abs(numbers.std() - 1) < 0.03)
        (True, True)
    """
    words = np.empty(count * _SUMMED, np.uint32)
    random_words(key, start * _SUMMED, words)
    sums = words.reshape(count, _SUMMED).sum(1, dtype=np.int64) - _SUMMED // 2 * _BLOCK
    numbers: npt.NDArray[np.float32] = (sums * 2.0**-32).astype(np.float32)
    return numbers


def bernoulli(key: int, start: int, count: int, probability: float) -> torch.Tensor:
    """Return 1 with the given probability, else 0, uint8 [count]; exact to 2⁻³².

    Examples:
        >>> from submerge.algebra import bernoulli, stream_key
        >>> ones = bernoulli(stream_key(0, "weight", 0), 0, 10_000, probability=0.2)
        >>> ones.dtype, abs(ones.float().mean().item() - 0.2) < 0.02
        (torch.uint8, True)
    """
    if probability >= 1:
        return torch.ones(count, dtype=torch.uint8)
    words = np.empty(count, np.uint32)
    random_words(key, start, words)
    return torch.from_numpy((words < _threshold(probability)).view(np.uint8))  # torch is slow with booleans


def keep_random(
    values: npt.NDArray[Any], key: int, start: int, probability: float, factor: float = 1.0
) -> None:
    """Multiply the values [n] that `bernoulli` gives 1 by a factor, and the others by 0, in place.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import bernoulli, keep_random, stream_key
        >>> key, values = stream_key(0, "weight", 0), np.ones(10)
        >>> keep_random(values, key, 5, probability=0.5, factor=2.0)
        >>> bool((values == 2 * bernoulli(key, 5, 10, 0.5).numpy()).all())
        True
    """
    if probability >= 1:
        kernels.scale(values, values.dtype.type(factor))
        return
    threshold, number = _threshold(probability), values.dtype.type(factor)
    for places, first, hash_key in _runs(key, start, values.size):
        kernels.keep_random(values[places], first, hash_key, threshold, number)


def masked_norms(values: npt.NDArray[Any], key: int, start: int, probability: float) -> tuple[float, float]:
    """Return the L1 norms of the values [n] and of what `keep_random` makes of them; they stay as they are.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import bernoulli, stream_key, masked_norms
        >>> key = stream_key(0, "weight", 0)
        >>> masked_norms(np.ones(10), key, 5, probability=0.5) == (10, bernoulli(key, 5, 10, 0.5).sum())
        True
    """
    if probability >= 1:
        total = kernels.sum_magnitudes(values)
        return total, total
    sums = [
        kernels.masked_norms(values[places], first, hash_key, _threshold(probability))
        for places, first, hash_key in _runs(key, start, values.size)
    ]
    return sum(total for total, _ in sums), sum(kept for _, kept in sums)


def _threshold(probability: float) -> np.uint32:
    """Return the word below which the words are whose share is the probability, which is less than 1."""
    return np.uint32(probability * _BLOCK)


def coins(key: int, start: int, count: int, probability: float) -> torch.Tensor:
    """Return what `bernoulli` does: its old name, which warns."""
    warn_renamed("coins", "bernoulli")
    return bernoulli(key, start, count, probability)
