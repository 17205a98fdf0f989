"""Loops over runs of elements, compiled by numba, with the same bits from numpy where numba is not there."""

from submerge.kernels._finite import array_type, count_nonfinite, is_finite
from submerge.kernels._kernel import Kernel, compiling_for, kernel, uses_numba, worth_compiling
from submerge.kernels._load import load
from submerge.kernels._store import store
from submerge.kernels._sums import add_scaled, scale

__all__ = [
    "Kernel",
    "add_scaled",
    "array_type",
    "compiling_for",
    "count_nonfinite",
    "is_finite",
    "kernel",
    "load",
    "scale",
    "store",
    "uses_numba",
    "worth_compiling",
]
