"""Weights that are divided by their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

from submerge.errors import Problem, RequestError
from submerge.methods._base import TensorSpec

__all__ = ["normalised", "refuse_cancelled"]

CANCELLED = 1e-12
"""The share of the weights' magnitudes below which their sum is rounding: 0.1 + 0.2 − 0.3 is not 0."""


def normalised(weights: Sequence[float]) -> list[float]:
    """Return the weights divided by their sum."""
    total = math.fsum(weights)
    return [w / total for w in weights]


def refuse_cancelled(spec: TensorSpec, weights: Sequence[float], option: str) -> None:
    """Raise `RequestError` where the weights sum to zero; without `option` they would not be divided."""
    if abs(math.fsum(weights)) <= CANCELLED * math.fsum(map(abs, weights)):
        what = "the weights sum to zero and cannot be normalised"
        hint = f"change the weights, or set {option}: false"
        raise RequestError(Problem(what, f"tensor {spec.name}", hint))
