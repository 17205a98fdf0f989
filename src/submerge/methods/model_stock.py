"""Model Stock: from the base towards the mean, as far as the updates agree.

θ = θ_0 + r · mean Δ_t,  r = T c / (1 + (T−1) c),  c = mean pairwise cosine of the updates,
per tensor, or (`filter_wise`) per row along the last axis. Jang et al. 2024, arXiv 2403.19522.
"""

from __future__ import annotations

import sys
from itertools import combinations, combinations_with_replacement
from typing import Any

from submerge.algebra import Chunk, Gram, combine, row_products
from submerge.deferred import np, npt
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

OPTIONS = (
    Option("filter_wise", bool, False, "a ratio for each row, not one for the tensor"),
    Option(
        "variant",
        str,
        "mergekit",
        "mergekit: products of norms are at least 1e-6; paper: exact cosines",
        choices=("mergekit", "paper"),
    ),
)

SINGULAR = 1e-6
"""Below this |1 + (T − 1) c| the ratio has no bound: the updates point away from one another."""
MERGEKIT_FLOOR = 1e-6
"""The least product of two norms by which mergekit divides."""


def _width(spec: TensorSpec, o: Values) -> int:
    return max(1, spec.shape[-1]) if o["filter_wise"] and spec.shape else 1


def _ratio(gram: npt.NDArray[np.float64], floor: float) -> npt.NDArray[np.float64]:
    """Return r for Gram matrices [T, T, ...]: 0 (the base) where 1 + (T−1)c vanishes, NaN for NaN and Inf."""
    count = len(gram)
    norms = [np.sqrt(gram[t, t]) for t in range(count)]
    cosines = [
        np.clip(gram[s, t] / np.maximum(norms[s] * norms[t], floor), -1, 1)
        for s, t in combinations(range(count), 2)
    ]
    c = sum(cosines) / len(cosines)
    divisor = 1 + (count - 1) * c
    singular = np.abs(divisor) < SINGULAR
    ratio = np.where(singular, 0.0, count * c / np.where(singular, 1.0, divisor))
    return np.where(np.isfinite(gram).all((0, 1)), ratio, np.nan)  # norms may be beyond float64


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    floor = MERGEKIT_FLOOR if o["variant"] == "mergekit" else sys.float_info.min
    if not o["filter_wise"]:
        gram = yield Gram()
        share = float(_ratio(gram, floor)) / spec.count
        return lambda chunk: combine(chunk.values, [share] * spec.count)

    def fold(chunk: Chunk) -> npt.NDArray[Any]:
        rows = chunk.values.reshape(spec.count, -1, chunk.width)
        ratio = _ratio(_row_grams(rows), floor)
        merged = combine(chunk.values, [1.0] * spec.count).reshape(-1, chunk.width)
        merged *= (ratio / spec.count).astype(merged.dtype)[:, np.newaxis]
        return merged.reshape(-1)

    return fold


def _row_grams(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the inner products [T, T, m] of rows [T, m, width]."""
    count, m, _ = rows.shape
    grams = np.empty((count, count, m))
    for s, t in combinations_with_replacement(range(count), 2):
        grams[s, t] = grams[t, s] = row_products(rows[s], rows[t])
    return grams


METHODS = (
    Method(
        name="model_stock",
        title="Model Stock",
        equation="θ = θ_0 + T c/(1+(T−1)c) · mean Δ_t",
        source="Jang et al. 2024, arXiv 2403.19522",
        use="Several fine-tunes of the same task; nothing to tune.",
        plan=_plan,
        options=OPTIONS,
        min_models=2,
        width=_width,
        differs="mergekit's floor of 1e-6 pulls tensors with tiny updates (norms below 1e-3) to the base.",
    ),
)
