"""The bytes of a tensor in memory."""

from __future__ import annotations

from submerge.deferred import torch

__all__ = ["byte_view"]


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, writable and without a copy.

    numpy has no bfloat16 and no float8, but it has the bytes of any type.
    """
    flat = tensor.view(-1)
    # a view without elements has a shape that `memoryview.cast` refuses
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
