"""SCE: select the elements that vary, calculate weights from energy, erase the minority signs.

1. mask = the share `select_topk` of elements with the largest variance over the models (counted
   among those that vary at all); 2. w_t = mean(Δ_t²) / Σ_s mean(Δ_s²) after the mask;
3. keep entries that agree with sgn Σ_t Δ_t;  θ = θ_0 + Σ w_t Δ_t e_t / Σ w_t e_t.
Wan et al. 2024, arXiv 2408.07990.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from submerge.algebra import Chunk, Totals, kth_largest
from submerge.deferred import np, npt
from submerge.kernels import MOST_ROWS, keep_where, sum_squares, variance
from submerge.methods._alongside import alongside
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values
from submerge.methods._masks import Mask
from submerge.methods._sign_consensus import consensus

__all__ = ["METHODS"]

OPTIONS = (
    Option("select_topk", float, 1.0, "share of the varying elements kept", low=0, high=1, tune=True),
    Option("int8_mask", bool, False, "accepted for mergekit recipes; has no effect here"),
    Option(
        "variant",
        str,
        "mergekit",
        "mergekit: equal weights where Σ mean Δ_t² < 1e-6; paper: always by energy",
        choices=("mergekit", "paper"),
    ),
)

MERGEKIT_FLOOR = 1e-6
"""The sum of mean squares below which mergekit weighs all models equally."""
SURELY = 0.999
"""The share of that sum below which that of a part of the entries is below it, however sums are rounded."""
SMALLEST = 2.0**-126
"""The smallest normal number of float32."""
LEAST, MOST = 2.0**-100, 2.0**120
"""A mean of squares and a sum of squares between which variances are normal numbers of float32."""
ROUNDING = 16 * 2.0**-23  # of float32
"""The share of itself, for each model, that a variance may be off by: the order of the models changes it."""


Spread: TypeAlias = "Callable[[Chunk, int], npt.NDArray[Any]]"
"""A measure of how much each element of a chunk varies over the models, in a scratch row."""


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    floor, least = (MERGEKIT_FLOOR,) * 2 if o["variant"] == "mergekit" else (sys.float_info.min, SMALLEST)
    threshold, bounds, spread = 0.0, None, _variance
    if o["select_topk"] < 1:
        share = [[float(o["select_topk"])]]
        search = kth_largest(spec.numel, share, spread)
        ((threshold,),), bounds = yield from alongside(search, Totals(_energies))
        if not _has_variances(spec, bounds.sum()):
            spread = _deviation
            ((threshold,),) = yield from kth_largest(spec.numel, share, spread)
    select = _selection(spec, threshold, spread)

    def selected_energies(chunk: Chunk) -> list[float]:
        select(chunk)
        return _energies(chunk)

    if bounds is not None and bounds.sum() < SURELY * floor * spec.numel:
        weights = [1 / spec.count] * spec.count
    else:
        weights = _weights(
            [e / max(1, spec.numel) for e in (yield Totals(selected_energies)).tolist()], floor
        )

    def fold(chunk: Chunk) -> npt.NDArray[Any]:
        select(chunk)
        return consensus(chunk, [1.0] * spec.count, weights, weights, least=least)

    return fold


def _energies(chunk: Chunk) -> list[float]:
    """Return Σ Δ_t² over the chunk, for each model."""
    return [sum_squares(row) for row in chunk.values]


def _has_variances(spec: TensorSpec, energy: float) -> bool:
    """Return whether variances are in the range of float32, for Σ Δ_t² over all models; or all are 0."""
    return energy == 0 or (energy >= LEAST * spec.numel and energy * spec.count**2 <= MOST)


def _selection(spec: TensorSpec, threshold: float, spread: Spread) -> Mask:
    """Return the mask that keeps the elements whose spread is the threshold, as rounded, or larger."""

    def select(chunk: Chunk) -> None:
        if threshold > 0:
            rounding = ROUNDING * spec.count + 4 * chunk.rounding
            keep = (spread(chunk, 0) >= threshold * (1 - rounding)).view(np.uint8)
            for row in chunk.values:
                keep_where(row, keep)

    return select


def _variance(chunk: Chunk, row: int) -> npt.NDArray[Any]:
    """Return T times the variance of each element over the models, in a scratch row; 0 where all are equal.

    Σ d_t² − (Σ d_t)²/T with d_t = Δ_t − Δ_1: the difference loses at most a factor of T in precision.
    """
    first, *others = chunk.values
    out, share = chunk.row(0), first.dtype.type(1 / (len(others) + 1))
    write = variance if 0 < len(others) <= MOST_ROWS else variance.reference
    write(out, first, tuple(others), share)
    return out


def _deviation(chunk: Chunk, row: int) -> npt.NDArray[Any]:
    """Return each element's standard deviation over the models, computed in float64, in a scratch row."""
    first, *others = chunk.values.astype(np.float64)
    variances, share, out = np.empty_like(first), 1 / chunk.values.shape[0], chunk.row(0)
    variance.reference(variances, first, tuple(others), share)
    out[:] = np.sqrt(np.maximum(variances, 0) * share)
    return out


def _weights(energies: Sequence[float], floor: float) -> list[float]:
    """Return each energy's share of their sum; equal shares where that is below `floor`."""
    if not all(map(math.isfinite, energies)):
        return [math.nan] * len(energies)  # beyond float64: the result is not to be the base
    total = math.fsum(energies)
    return [1 / len(energies)] * len(energies) if total < floor else [e / total for e in energies]


METHODS = (
    Method(
        name="sce",
        title="SCE",
        equation="θ = θ_0 + Σ w_t Δ_t e_t / Σ w_t e_t,  w_t ∝ mean Δ_t²",
        source="Wan et al. 2024, arXiv 2408.07990",
        use="Models of unequal strength: a larger update weighs more.",
        plan=_plan,
        options=OPTIONS,
        differs="mergekit weighs all models equally where Σ mean Δ_t² < 1e-6, which is the usual size of "
        "a fine-tune's update: variant: paper weighs by energy whatever its size.",
    ),
)
