"""Sparsifiers of updates, by the paper: each plans what it must know, and returns an in-place mask.

A sparsifier is a generator like a method's plan; what it returns overwrites `chunk.values` with
the masked updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from submerge.algebra import Chunk, Reduction, keep_random, kth_largest
from submerge.deferred import npt
from submerge.kernels import keep_between
from submerge.methods._base import TensorSpec, Values

__all__ = [
    "Mask",
    "MaskPlan",
    "Sparsifier",
    "keep_all",
    "mask_outliers",
    "random_drop",
    "trim",
]

Mask: TypeAlias = Callable[[Chunk], None]
"""Overwrites the updates of a chunk with the masked ones."""
MaskPlan: TypeAlias = Generator[Reduction[Any, Any], Any, Mask]
Sparsifier: TypeAlias = Callable[[TensorSpec, Values], MaskPlan]


def keep_all(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep every entry."""
    yield from ()  # no reduction is needed
    return lambda chunk: None


def _keep(values: npt.NDArray[Any], least: float, most: float = math.inf) -> None:
    """Clear entries of magnitudes below `least` or above `most`, in place."""
    if least > 0 or most < math.inf:
        keep_between(values, values.dtype.type(least), values.dtype.type(most))


def trim(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep the share `density` of the entries that is largest in magnitude, per tensor (TIES, trim).

    Entries that tie with the smallest one kept are kept too: which of them to drop would be
    arbitrary. Those of products tie where they are equal to rounding. (arXiv 2306.01708, step 1.)
    """
    densities = o["density"]
    ranks = [[max(1, int(d * spec.numel))] if 0 < d < 1 else [] for d in densities]
    smallest = yield from kth_largest(spec.numel, ranks)  # of those that are kept
    thresholds = [
        s[0] if s else (0.0 if d >= 1 else math.inf) for s, d in zip(smallest, densities, strict=True)
    ]
    if not any(thresholds):
        return lambda chunk: None

    def mask(chunk: Chunk) -> None:
        for row, threshold in zip(chunk.values, thresholds, strict=True):
            _keep(row, threshold * (1 - chunk.rounding))

    return mask


def mask_outliers(spec: TensorSpec, o: Values) -> MaskPlan:
    """Drop the share `gamma` of largest magnitudes, then the smallest, until `density` is kept (Breadcrumbs).

    Where γ + density > 1 fewer outliers are dropped, so that density holds; ties at either end
    are kept. (arXiv 2312.06795.)
    """
    n = spec.numel
    ranks: list[list[int]] = []
    for density, gamma in zip(o["density"], o["gamma"], strict=True):
        keep = int(density * n)
        outliers = min(int(gamma * n), n - keep)
        ranks.append([] if density >= 1 or keep == 0 else [outliers + 1, outliers + keep])
    extremes = yield from kth_largest(n, ranks)  # the largest and the smallest that are kept
    everything, nothing = [math.inf, 0.0], [-1.0, math.inf]
    ends = [e or (everything if d >= 1 else nothing) for e, d in zip(extremes, o["density"], strict=True)]

    def mask(chunk: Chunk) -> None:
        for row, (high, low) in zip(chunk.values, ends, strict=True):
            _keep(row, low * (1 - chunk.rounding), high * (1 + chunk.rounding))

    return mask


def random_drop(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep each entry with probability `density`, independently (DARE).

    `variant: paper` divides what is kept by its probability. (arXiv 2311.03099.)
    """
    yield from ()  # no reduction is needed
    densities = o["density"]
    unbiased = o["rescale"] and o["variant"] == "paper"

    def mask(chunk: Chunk) -> None:
        for t, density in enumerate(densities):
            if density < 1:
                factor = 1 / density if unbiased and density > 0 else 1.0
                keep_random(chunk.values[t], chunk.keys[t], chunk.start, density, factor)

    return mask
