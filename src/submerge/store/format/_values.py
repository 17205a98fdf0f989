"""Values of tensors as arrays or tensors, whatever type a file has them in."""

from __future__ import annotations

from typing import Any, TypeAlias

from submerge.deferred import np, npt, torch
from submerge.kernels import array_type, load, store
from submerge.store.format._byte_view import byte_view
from submerge.store.format._dtypes import torch_dtype
from submerge.store.format._source import Source

__all__ = ["read_elements", "read_values", "rounded"]

Array: TypeAlias = "npt.NDArray[Any]"


def read_values(source: Source, dtype: str, start: int, count: int) -> Array:
    """Return elements [start, start + count) of a float tensor as float32, float64 ones as float64."""
    raw = np.empty(count, array_type(dtype))
    source.read(start, count, byte_view(raw))
    values = np.empty(count, np.float64 if dtype == "F64" else np.float32)
    load(dtype, raw, values)
    return values


def read_elements(source: Source, dtype: str, start: int, count: int) -> torch.Tensor:
    """Return elements [start, start + count) of a tensor as they are stored, flat."""
    values = torch.empty(count, dtype=torch_dtype(dtype))
    source.read(start, count, byte_view(values))
    return values


def rounded(values: Array, dtype: str) -> Array:
    """Return float values [n] in the type of a file, as `kernels.array_type` holds it."""
    out = np.empty(values.size, array_type(dtype))
    store(dtype, values, out)
    return out
