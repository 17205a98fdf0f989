"""The bytes of a tensor or an array in memory."""

from __future__ import annotations

from typing import Any, TypeAlias

from submerge.deferred import np, npt, torch

__all__ = ["InMemory", "byte_view"]

InMemory: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
"""A tensor in memory; an array has floats as `kernels.array_type` says, those of 16 bits as their bits."""


def byte_view(values: InMemory) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, or array, writable and without a copy.

    numpy has no bfloat16 and no float8, but it has the bytes of any type.
    """
    array = values if isinstance(values, np.ndarray) else values.view(-1).view(torch.uint8).numpy()
    # a view without elements has a shape that `memoryview.cast` refuses
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
