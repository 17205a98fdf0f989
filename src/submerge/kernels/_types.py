"""The types that kernels take."""

from __future__ import annotations

from typing import Any, TypeAlias

from submerge.deferred import np, npt

__all__ = ["Floats", "Number", "Words"]

Floats: TypeAlias = "npt.NDArray[np.floating[Any]]"
"""A run of float32 or float64 values [n]; all floats that one call gets are of one type."""
Number: TypeAlias = "np.floating[Any]"
"""A number of the type of the call's runs."""
Words: TypeAlias = "npt.NDArray[np.uint32]"
"""A run of 32-bit words."""
