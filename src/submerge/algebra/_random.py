"""Random numbers by position: number i of a stream can be had without the i − 1 before it."""

from __future__ import annotations

import hashlib

from submerge.deferred import np, npt, torch
from submerge.deprecated import warn_renamed

__all__ = ["bernoulli", "coins", "stream_key", "uniform"]

_WORD = 8  # bytes that the generator makes in one step
_GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio: splitmix64's step


def stream_key(seed: int, name: str, model: int) -> int:
    """Return the 128-bit key of the stream for one model's update of the tensor called `name`.

    Examples:
        >>> from submerge.algebra import stream_key
        >>> stream_key(seed=0, name="weight", model=0) == stream_key(seed=0, name="weight", model=1)
        False
    """
    text = f"{seed}\0{name}\0{model}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def _bytes(key: int, start: int, count: int) -> npt.NDArray[np.uint8]:
    """Return bytes start … start + count − 1 of the stream.

    The generator (PCG64-DXSM, O'Neill 2014) can be advanced to any step at once, so chunks may be
    drawn in any order, by any thread, in any length: the concatenation is always the same.
    """
    step, skip = divmod(start, _WORD)
    words = np.random.PCG64DXSM(key).advance(step).random_raw(-(-(skip + count) // _WORD))
    return np.asarray(words).view(np.uint8)[skip : skip + count]


def uniform(key: int, start: int, count: int) -> torch.Tensor:
    """Return numbers start … start + count − 1 of the stream, in [0, 1), float32; resolution 2⁻²⁴.

    Examples:
        >>> import torch
        >>> from submerge.algebra import stream_key, uniform
        >>> key = stream_key(0, "weight", 0)
        >>> torch.equal(uniform(key, 0, 10)[6:], uniform(key, 6, 4))
        True
    """
    top = _bytes(key, 4 * start, 4 * count).view(np.uint32) >> np.uint32(8)
    return torch.from_numpy(top.astype(np.float32)).mul_(2.0**-24)


def bernoulli(key: int, start: int, count: int, probability: float) -> torch.Tensor:
    """Return 1 with the given probability, else 0, uint8 [count]; exact to 2⁻⁴⁰.

    One random byte decides all but 1 in 256 draws, those whose byte equals ⌊256 p⌋; they are
    decided by 32 more bits, a hash (splitmix64) of their position.

    Examples:
        >>> from submerge.algebra import bernoulli, stream_key
        >>> ones = bernoulli(stream_key(0, "weight", 0), 0, 10_000, probability=0.2)
        >>> ones.dtype, abs(ones.float().mean().item() - 0.2) < 0.02
        (torch.uint8, True)
    """
    if probability >= 1:
        return torch.ones(count, dtype=torch.uint8)
    threshold, fraction = divmod(probability * 256, 1)
    random_bytes = _bytes(key, start, count)
    ones = np.less(random_bytes, np.uint8(threshold))
    if fraction:
        undecided = np.flatnonzero(random_bytes == np.uint8(threshold))
        hashes = _hashed(key, undecided.astype(np.uint64) + np.uint64(start))
        ones[undecided] = hashes < np.uint32(fraction * 2**32)
    return torch.from_numpy(ones.view(np.uint8))  # torch is slow with booleans


def coins(key: int, start: int, count: int, probability: float) -> torch.Tensor:
    """Return what `bernoulli` does: its old name, which warns."""
    warn_renamed("coins", "bernoulli")
    return bernoulli(key, start, count, probability)


def _hashed(key: int, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """Return 32 bits for each position: splitmix64 (Steele et al. 2014) from a start set by the key."""
    z = positions * np.uint64(_GOLDEN) + np.uint64(key >> 64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z >> np.uint64(32)).astype(np.uint32)
