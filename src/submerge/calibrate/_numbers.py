"""What passes for a number among arguments that may be anything."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

__all__ = ["is_finite_number", "is_whole_number"]


def is_whole_number(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number, and neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
