"""Sparsifiers of updates, by the paper: each plans what it must know, and returns an in-place mask.

A sparsifier is a generator like a method's plan; what it returns overwrites `chunk.values` with
the masked updates. `rescaled` wraps any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from submerge.algebra import Chunk, Reduction, Totals, keep_random, kth_largest, random_words
from submerge.deferred import np, npt
from submerge.errors import Problem, RequestError
from submerge.kernels import keep_between, sum_magnitudes
from submerge.methods._base import TensorSpec, Values

__all__ = [
    "Mask",
    "MaskPlan",
    "Sparsifier",
    "keep_all",
    "magprune",
    "mask_outliers",
    "random_drop",
    "refuse_magprune",
    "rescaled",
    "trim",
]

Mask: TypeAlias = Callable[[Chunk], None]
"""Overwrites the updates of a chunk with the masked ones."""
MaskPlan: TypeAlias = Generator[Reduction[Any, Any], Any, Mask]
Sparsifier: TypeAlias = Callable[[TensorSpec, Values], MaskPlan]

SHORTEST = 1e-7
"""An L1 norm below this is not restored: it would be a division by noise."""


def keep_all(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep every entry."""
    return lambda chunk: None
    yield


def _magnitudes(chunk: Chunk, row: int) -> npt.NDArray[Any]:
    magnitudes: npt.NDArray[Any] = np.abs(chunk.values[row], out=chunk.row(0))
    return magnitudes


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
    smallest = yield from kth_largest(spec.numel, ranks, _magnitudes)  # of those that are kept
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
    extremes = yield from kth_largest(n, ranks, _magnitudes)  # the largest and the smallest that are kept
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
    densities = o["density"]
    unbiased = o["rescale"] and o["variant"] == "paper"

    def mask(chunk: Chunk) -> None:
        for t, density in enumerate(densities):
            if density < 1:
                factor = 1 / density if unbiased and density > 0 else 1.0
                keep_random(chunk.values[t], chunk.keys[t], chunk.start, density, factor)

    return mask
    yield


def refuse_magprune(spec: TensorSpec, o: Values) -> None:
    """Raise `RequestError` where a probability of `magprune` would be none."""
    for density, epsilon in zip(o["density"], o["epsilon"], strict=True):
        if 0 < density < 1 and not (0 < density - epsilon and density + epsilon < 1):
            what = f"density {density:g} ± epsilon {epsilon:g} leaves the range (0, 1)"
            hint = "choose epsilon below both density and 1 − density"
            raise RequestError(Problem(what, f"tensor {spec.name}", hint))


def magprune(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep entries with a probability that grows with their rank by magnitude in their row (DELLA, MagPrune).

    p_i = density − ε + 2ε (rank_i − 1)/(n − 1), rank 1 the smallest, rows along the last axis.
    `variant: paper` divides what is kept by p_i. (arXiv 2406.11617.)
    """
    unbiased = o["rescale"] and o["variant"] == "paper"

    def mask(chunk: Chunk) -> None:
        words = np.empty(chunk.values.shape[1], np.uint32)
        for t, (density, epsilon) in enumerate(zip(o["density"], o["epsilon"], strict=True)):
            row = chunk.values[t]
            if density <= 0:
                row[:] = 0
            elif density < 1:
                random_words(chunk.keys[t], chunk.start, words)
                probability = _relative_ranks(row.reshape(-1, chunk.width)).reshape(-1)
                probability *= 2 * epsilon
                probability += density - epsilon
                ones = ((words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) < probability).astype(
                    row.dtype
                )
                row *= ones / probability if unbiased else ones

    return mask
    yield


def _relative_ranks(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the rank by magnitude of each entry in its row, from 0 (smallest) to 1; ½ if it is alone."""
    width = rows.shape[-1]
    magnitudes: npt.NDArray[Any] = np.abs(rows)
    scale = np.linspace(0, 1, width, dtype=magnitudes.dtype) if width > 1 else np.full(1, 0.5)
    ranks: npt.NDArray[Any] = np.empty_like(magnitudes)
    np.put_along_axis(ranks, _ascending(magnitudes), np.broadcast_to(scale, ranks.shape), axis=-1)
    return ranks


def _ascending(magnitudes: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the places of each row's entries from the smallest to the largest, equal ones in their order.

    Bits of floats that are not negative ascend with them. So 32 bits of magnitude above 32 bits of place are
    integers that any sort puts in this order, and those of integers are many times as fast as a stable one.
    """
    if magnitudes.dtype != np.float32:
        return np.asarray(np.argsort(magnitudes, axis=-1, kind="stable"))
    keys = magnitudes.view(np.int32).astype(np.int64) << 32
    keys |= np.arange(magnitudes.shape[-1], dtype=np.int64)
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return keys.astype(np.intp, copy=False)


def rescaled(
    sparsifier: Sparsifier, spec: TensorSpec, o: Values
) -> Generator[Reduction[Any, Any], Any, tuple[Mask, list[float]]]:
    """Plan the sparsifier, and the factor for each model that restores its update's L1 norm.

    With `rescale` and mergekit's variant the factor is Σ|Δ| / Σ|masked Δ| over the tensor, which
    one more pass measures; with `variant: paper` the sparsifier itself divides by probabilities.
    """
    mask = yield from sparsifier(spec, o)
    by_probability = o.get("variant") == "paper" and sparsifier in (random_drop, magprune)
    if not o["rescale"] or by_probability:
        return mask, [1.0] * spec.count

    def norms(chunk: Chunk) -> list[list[float]]:
        before = [sum_magnitudes(row) for row in chunk.values]
        mask(chunk)
        return [before, [sum_magnitudes(row) for row in chunk.values]]

    before, after = yield Totals(norms)
    return mask, [
        b / a if b >= SHORTEST and a >= SHORTEST else 1.0
        for b, a in zip(before.tolist(), after.tolist(), strict=True)
    ]
