"""Loops over runs of elements, compiled by numba, with the same bits from numpy where numba is not there."""

from submerge.kernels._kernel import Kernel, kernel, uses_numba
from submerge.kernels._sums import add_scaled, scale

__all__ = ["Kernel", "add_scaled", "kernel", "scale", "uses_numba"]
