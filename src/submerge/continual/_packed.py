"""Tensors in fewer bytes, without loss: a Huffman code for the byte of each number with its exponent.

The numbers of a matrix are of few magnitudes. Of the uppermost byte, with the sign and the first bits of the
exponent, 2 to 3 bits say all, and the other bytes are as good as noise. So these stay as they are, and the
uppermost ones become a stream of zlib, by a code alone: a search for repetitions finds none, and takes its
time. A number in bfloat16 takes 10.5 bits then, and one in float32 26.5.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

from submerge.deferred import torch
from submerge.store import DTYPES, TensorEntry, byte_view, dtype_named

__all__ = ["packed", "unpacked"]

UPPERMOST = "uppermost"


def packed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a file holds of a tensor: `NAME.uppermost`, the stream, and `NAME.DTYPE`, the other bytes.

    These are [..., b - 1] of a tensor [...] of numbers of b bytes.
    """
    numbers = torch.frombuffer(byte_view(tensor.detach().cpu().contiguous()), dtype=torch.uint8)
    numbers = numbers.view(*tensor.shape, tensor.element_size())
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    stream = coder.compress(byte_view(numbers[..., -1].contiguous())) + coder.flush()
    return {
        f"{name}.{dtype_named(tensor.dtype)}": numbers[..., :-1].contiguous(),
        f"{name}.{UPPERMOST}": torch.frombuffer(bytearray(stream), dtype=torch.uint8),
    }


def unpacked(
    entries: Mapping[str, TensorEntry], name: str, read: Callable[[TensorEntry], torch.Tensor]
) -> torch.Tensor:
    """Return a tensor of what a file holds of it; raise `KeyError` where that is nothing."""
    dtypes = {f"{name}.{key}": dtype.torch for key, dtype in DTYPES.items()}
    key = next((key for key in dtypes if key in entries), name)
    lower, stream = read(entries[key]), read(entries[f"{name}.{UPPERMOST}"])
    upper = torch.frombuffer(bytearray(zlib.decompress(byte_view(stream))), dtype=torch.uint8)
    numbers = torch.cat([lower, upper.view(*lower.shape[:-1], 1)], dim=-1)
    dtype = dtypes[key]
    assert dtype is not None
    return numbers.view(dtype).view(lower.shape[:-1])
