"""Random numbers by position: number i of a stream can be had without the i − 1 before it."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["coins", "stream_key", "uniform"]

_BLOCK = 32  # Philox4x64 makes 4 × 64 bits, that is 32 bytes, for each value of its counter
_GOLDEN = 0x9E3779B97F4A7C15


def stream_key(seed: int, name: str, model: int) -> int:
    """Return the 128-bit key of the stream for one model's update of the tensor called `name`."""
    text = f"{seed}\0{name}\0{model}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def _bytes(key: int, start: int, count: int) -> npt.NDArray[np.uint8]:
    """Return bytes start … start + count − 1 of the stream.

    Counter-based (Philox4x64-10, Salmon et al. 2011), so chunks may be drawn in any order, by any
    thread, in any length: the concatenation is always the same.
    """
    block, skip = divmod(start, _BLOCK)
    generator = np.random.Generator(np.random.Philox(key=key, counter=block))
    words = generator.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True, size=(skip + count + 7) // 8)
    return words.view(np.uint8)[skip : skip + count]


def uniform(key: int, start: int, count: int) -> torch.Tensor:
    """Return numbers start … start + count − 1 of the stream, in [0, 1), float32; resolution 2⁻²⁴."""
    top = _bytes(key, 4 * start, 4 * count).view(np.uint32) >> np.uint32(8)
    return torch.from_numpy(top.astype(np.float32)).mul_(2.0**-24)


def coins(key: int, start: int, count: int, probability: float) -> torch.Tensor:
    """Return 1 with the given probability, else 0, float32 [count]; exact to 2⁻⁴⁰.

    One random byte decides all but 1 in 256 tosses, those whose byte equals ⌊256 p⌋; they are
    decided by 32 more bits, a hash (splitmix64) of their position.
    """
    if probability >= 1:
        return torch.ones(count)
    whole, rest = divmod(probability * 256, 1)
    drawn = _bytes(key, start, count)
    kept = np.less(drawn, np.uint8(whole))
    open_ = np.flatnonzero(drawn == np.uint8(whole))
    kept[open_] = _hashed(key, open_.astype(np.uint64) + np.uint64(start)) < np.uint32(rest * 2**32)
    return torch.from_numpy(kept.astype(np.float32))


def _hashed(key: int, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """Return 32 bits for each position: splitmix64 (Steele et al. 2014) from a start set by the key."""
    z = positions * np.uint64(_GOLDEN) + np.uint64(key >> 64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z >> np.uint64(32)).astype(np.uint32)
