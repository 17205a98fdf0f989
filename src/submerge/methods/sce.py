"""SCE: select the elements that vary, calculate weights from energy, erase the minority signs.

1. mask = the share `select_topk` of elements with the largest variance over the models (counted
   among those that vary at all); 2. w_t = mean(Δ_t²) / Σ_s mean(Δ_s²) after the mask;
3. keep entries that agree with sgn Σ_t Δ_t;  θ = θ_0 + Σ w_t Δ_t e_t / Σ w_t e_t.
Wan et al. 2024, arXiv 2408.07990.
"""

from __future__ import annotations

import torch

from submerge.algebra import Chunk, Totals, kth_largest, total
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values
from submerge.methods._consensus import majority

__all__ = ["METHODS"]

SMALL = 1e-6


def _variance(chunk: Chunk) -> torch.Tensor:
    """Return the variance of each element over the models, shape [1, n]; exactly 0 where all are equal."""
    first, *others = chunk.updates
    count = len(others) + 1
    differences = [row - first for row in others]
    mean = torch.zeros_like(first)
    for difference in differences:
        mean.add_(difference)
    mean.div_(count)
    result = mean.square()
    for difference in differences:
        difference.sub_(mean)
        result.addcmul_(difference, difference)
    return result.div_(count).unsqueeze(0)


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    threshold = 0.0
    if o["select_topk"] < 1:
        ((threshold,),) = yield from kth_largest(spec.numel, [[float(o["select_topk"])]], _variance)

    def select(chunk: Chunk) -> None:
        if threshold > 0:
            chunk.updates.mul_(_variance(chunk).ge_(threshold))

    def energy(chunk: Chunk) -> torch.Tensor:
        select(chunk)
        return torch.stack([torch.dot(row, row) for row in chunk.updates])

    energies = [e / max(1, spec.numel) for e in (yield Totals(energy)).tolist()]
    together = sum(energies)
    floor = SMALL if o["variant"] == "mergekit" else torch.finfo(torch.float32).tiny
    if together < floor:
        weights = [1 / spec.count] * spec.count
    else:
        weights = [e / together for e in energies]

    def fold(chunk: Chunk) -> torch.Tensor:
        select(chunk)
        u = chunk.updates
        sign = majority(total(u))
        u.mul_(sign)
        numerator, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
        for row, w in zip(u, weights, strict=True):
            numerator.add_(row.clamp(min=0), alpha=w)
            divisor.add_(row.gt_(0), alpha=w)
        return numerator.mul_(sign).div_(divisor.clamp_(min=floor))

    return fold


METHODS = (
    Method(
        name="sce",
        title="SCE",
        equation="θ = θ_0 + Σ w_t Δ_t e_t / Σ w_t e_t,  w_t ∝ mean Δ_t²",
        source="Wan et al. 2024, arXiv 2408.07990",
        use="Models of unequal strength: a larger update weighs more.",
        plan=_plan,
        options=(
            Option("select_topk", float, 1.0, "share of the varying elements kept", low=0, high=1, tune=True),
            Option("int8_mask", bool, False, "accepted for mergekit recipes; has no effect here"),
            Option(
                "variant",
                str,
                "mergekit",
                "mergekit: equal weights where Σ mean Δ_t² < 1e-6; paper: always by energy",
                choices=("mergekit", "paper"),
            ),
        ),
        differs="mergekit weighs all models equally where Σ mean Δ_t² < 1e-6, which is the usual size of "
        "a fine-tune's update: variant: paper weighs by energy whatever its size.",
    ),
)
