"""SCE: select the elements that vary, calculate weights from energy, erase the minority signs.

1. mask = the share `select_topk` of elements with the largest variance over the models (counted
   among those that vary at all); 2. w_t = mean(Δ_t²) / Σ_s mean(Δ_s²) after the mask;
3. keep entries that agree with sgn Σ_t Δ_t;  θ = θ_0 + Σ w_t Δ_t e_t / Σ w_t e_t.
Wan et al. 2024, arXiv 2408.07990.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from submerge.algebra import Chunk, Totals, kth_largest
from submerge.deferred import torch
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values
from submerge.methods._consensus import consensus
from submerge.methods._masks import MaskPlan

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
ROUNDING = 16 * 2.0**-23  # of float32
"""The share of itself, for each model, that a variance may be off by: fused multiply-adds give another."""


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    select = yield from _selection(spec, o)

    def energies(chunk: Chunk) -> torch.Tensor:
        select(chunk)
        return torch.stack([torch.dot(row, row) for row in chunk.updates])

    floor = MERGEKIT_FLOOR if o["variant"] == "mergekit" else torch.finfo(torch.float32).tiny
    weights = _weights([e / max(1, spec.numel) for e in (yield Totals(energies)).tolist()], floor)

    def fold(chunk: Chunk) -> torch.Tensor:
        select(chunk)
        numerator, divisor, sign = consensus(chunk, weights, weights)
        return numerator.mul_(sign).div_(divisor.clamp_(min=floor))

    return fold


def _selection(spec: TensorSpec, o: Values) -> MaskPlan:
    """Plan the mask that keeps the elements of largest variance, and those that tie with the last of them."""
    threshold = 0.0
    if o["select_topk"] < 1:
        ((threshold,),) = yield from kth_largest(spec.numel, [[float(o["select_topk"])]], _variance)

    def select(chunk: Chunk) -> None:
        if threshold > 0:
            rounding = ROUNDING * spec.count + 4 * chunk.rounding
            chunk.updates.mul_(_variance(chunk).ge_(threshold * (1 - rounding)))

    return select


def _variance(chunk: Chunk, row: int = 0) -> torch.Tensor:
    """Return T times the variance of each element over the models, in a scratch row; 0 where all are equal.

    Σ d_t² − (Σ d_t)²/T with d_t = Δ_t − Δ_1: the difference loses at most a factor of T in precision.
    """
    first, *others = chunk.updates
    squares, sum_, difference = (chunk.scratch(k) for k in range(3))
    squares.zero_()
    sum_.zero_()
    for other in others:
        torch.sub(other, first, out=difference)
        sum_.add_(difference)
        squares.addcmul_(difference, difference)
    return squares.addcmul_(sum_, sum_, value=-1 / len(chunk.updates))


def _weights(energies: Sequence[float], floor: float) -> list[float]:
    """Return each energy's share of their sum; equal shares where that is below `floor`."""
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
