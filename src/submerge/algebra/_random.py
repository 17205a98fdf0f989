"""Random numbers by position: number i of a stream can be had without the i − 1 before it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

__all__ = ["stream_key", "uniform"]

_PER_BLOCK = 8  # Philox4x64 makes 4 × 64 bits for each value of its counter: 8 numbers of 32 bits


def stream_key(seed: int, name: str, model: int) -> int:
    """Return the 128-bit key of the stream for one model's update of the tensor called `name`."""
    text = f"{seed}\0{name}\0{model}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def uniform(key: int, start: int, count: int) -> torch.Tensor:
    """Return numbers start … start + count − 1 of the stream, uniform in [0, 1), float32 [count].

    Counter-based (Philox4x64-10, Salmon et al. 2011), so chunks may be drawn in any order, by any
    thread, in any length: the concatenation is always the same. Resolution 2⁻²⁴.
    """
    block, skip = divmod(start, _PER_BLOCK)
    bits = np.random.Philox(key=key, counter=block)
    words = np.random.Generator(bits).integers(
        0, 2**64 - 1, dtype=np.uint64, endpoint=True, size=(skip + count + 1) // 2
    )
    top = words.view(np.uint32)[skip : skip + count] >> np.uint32(8)
    return torch.from_numpy(top.astype(np.float32)).mul_(2.0**-24)
