"""Random numbers by position: number i of a stream can be had without the i − 1 before it."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["coins", "stream_key", "uniform"]

_PER_BLOCK = 8  # Philox4x64 makes 4 × 64 bits for each value of its counter: 8 numbers of 32 bits


def stream_key(seed: int, name: str, model: int) -> int:
    """Return the 128-bit key of the stream for one model's update of the tensor called `name`."""
    text = f"{seed}\0{name}\0{model}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def _bits(key: int, start: int, count: int) -> npt.NDArray[np.uint32]:
    """Return words start … start + count − 1 of the stream, 32 random bits each.

    Counter-based (Philox4x64-10, Salmon et al. 2011), so chunks may be drawn in any order, by any
    thread, in any length: the concatenation is always the same.
    """
    block, skip = divmod(start, _PER_BLOCK)
    generator = np.random.Generator(np.random.Philox(key=key, counter=block))
    words = generator.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True, size=(skip + count + 1) // 2)
    return words.view(np.uint32)[skip : skip + count]


def uniform(key: int, start: int, count: int) -> torch.Tensor:
    """Return numbers start … start + count − 1 of the stream, in [0, 1), float32; resolution 2⁻²⁴."""
    top = _bits(key, start, count) >> np.uint32(8)
    return torch.from_numpy(top.astype(np.float32)).mul_(2.0**-24)


def coins(key: int, start: int, count: int, probability: float) -> torch.Tensor:
    """Return 1 with the given probability, else 0, float32; exact to 2⁻³²."""
    limit = min(round(probability * 2**32), 2**32)
    if limit == 2**32:
        return torch.ones(count)
    return torch.from_numpy(np.less(_bits(key, start, count), np.uint32(limit)).astype(np.float32))
