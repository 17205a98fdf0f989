"""What passes for a number among arguments that may be anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from submerge.errors import Problem, RequestError

__all__ = ["check_counts", "is_finite_number", "is_whole_number"]


def is_whole_number(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number, and neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_counts(counts: Mapping[str, Any]) -> None:
    """Raise `RequestError` with all arguments that are no whole numbers from 1 on; None is left out."""
    wrong = {name: n for name, n in counts.items() if n is not None and (not is_whole_number(n) or n < 1)}
    what = "is no whole number from 1"
    if problems := [Problem(f"{n!r} {what}", name, "give such as 16") for name, n in wrong.items()]:
        raise RequestError(problems)
