"""Task arithmetic and its sparse relatives: mask × consensus × normaliser.

θ = θ_0 + λ · merge_t( w_t · mask(Δ_t) ). A method of the family is a row of the table below:
which entries of an update survive (`_masks`, `_magprune`), whether models vote on each entry's sign, and
whether the sum is divided by the weights that took part.

Ilharco et al. 2022 (task arithmetic, arXiv 2212.04089), Yadav et al. 2023 (TIES, 2306.01708),
Yu et al. 2023 (DARE, 2311.03099), Deep et al. 2024 (DELLA, 2406.11617), Davari & Belilovsky 2023
(Breadcrumbs, 2312.06795).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from submerge.algebra import Chunk, WeightedSum, combine
from submerge.deferred import npt
from submerge.methods import _masks
from submerge.methods._base import REQUIRED, Fold, FoldPlan, Method, Option, TensorSpec, Values
from submerge.methods._magprune import magprune, refuse_magprune
from submerge.methods._rescaled import rescaled
from submerge.methods._sign_consensus import consensus

__all__ = ["METHODS"]

CANCELLED = 1e-8
"""Weights whose sum is smaller cancel, and are not divided by it (as in mergekit)."""


@dataclass(frozen=True)
class _Row:
    """One method: its name, mask, sign vote, defaults, and where it comes from."""

    name: str
    title: str
    mask: _masks.Sparsifier
    vote: bool
    normalize: bool
    rescale: bool
    source: str
    use: str
    paper: str = ""


def _options(row: _Row) -> tuple[Option, ...]:
    sparse = row.mask is not _masks.keep_all
    density = "share of entries kept" if sparse else "accepted for mergekit recipes; has no effect here"
    options = [
        Option("weight", float, REQUIRED, "factor on each model's update", scope="model", tune=True),
        Option("lambda", float, 1.0, "factor on the merged update", tune=True),
        Option("normalize", bool, row.normalize, "divide by the sum of the weights that took part"),
        Option("rescale", bool, row.rescale, "make up for what the mask removed"),
        Option("int8_mask", bool, False, "accepted for mergekit recipes; has no effect here"),
        Option("density", float, 1.0, density, scope="model", low=0, high=1, tune=sparse),
    ]
    if row.mask is _masks.mask_outliers:
        options.append(
            Option("gamma", float, 0.01, "share of the largest entries dropped", scope="model", low=0, high=1)
        )
    if row.mask is magprune:
        options.append(
            Option("epsilon", float, 0.15, "half-range of the probabilities", scope="model", low=0, high=0.5)
        )
    if row.paper:
        options.append(Option("variant", str, "mergekit", row.paper, choices=("mergekit", "paper")))
    return tuple(options)


def _plan(row: _Row, spec: TensorSpec, o: Values) -> FoldPlan:
    mask, factors = yield from rescaled(row.mask, spec, o)
    return _elected_sum(mask, factors, o) if row.vote else _weighted_sum(row, mask, factors, o)


def _weighted_sum(row: _Row, mask: _masks.Mask, factors: Sequence[float], o: Values) -> Fold:
    """Return the fold λ Σ w_t f_t mask(Δ_t), divided by Σ w_t if `normalize`; f_t rescales the mask."""
    scale = _scale(o)
    coefficients = [w * f * scale for w, f in zip(o["weight"], factors, strict=True)]
    if row.mask is _masks.keep_all:
        return WeightedSum(coefficients)

    def fold(chunk: Chunk) -> npt.NDArray[Any]:
        mask(chunk)
        return combine(chunk.values, coefficients)

    return fold


def _elected_sum(mask: _masks.Mask, factors: Sequence[float], o: Values) -> Fold:
    """Return the fold λ Σ w_t f_t mask(Δ_t) over the entries that agree with the elected sign.

    In the papers signs are elected on f_t mask(Δ_t), and `normalize` divides by the number that agrees. In
    mergekit both are weighted.
    """
    weights, ones = o["weight"], [1.0] * len(o["weight"])
    if o.get("variant") == "paper":
        ballots, shares, counts = factors, weights, ones
    else:
        ballots, shares, counts = [w * f for w, f in zip(weights, factors, strict=True)], ones, weights

    def fold(chunk: Chunk) -> npt.NDArray[Any]:
        mask(chunk)
        return consensus(chunk, ballots, shares, counts if o["normalize"] else None, factor=o["lambda"])

    return fold


def _scale(o: Values) -> float:
    """Return λ, or λ / Σ w_t where the sum is divided by the weights."""
    total = math.fsum(o["weight"])
    scale: float = o["lambda"] / total if o["normalize"] and abs(total) >= CANCELLED else o["lambda"]
    return scale


def _coefficients(o: Values) -> list[float]:
    """Return what the fold multiplies each update by, where there is no mask and no vote."""
    scale = _scale(o)
    return [w * scale for w in o["weight"]]


def _width(row: _Row, spec: TensorSpec) -> int:
    return max(1, spec.shape[-1]) if row.mask is magprune and spec.shape else 1


def _method(row: _Row) -> Method:
    equation = "θ = θ_0 + λ Σ w_t mask(Δ_t)"
    if row.mask is _masks.keep_all:
        equation = "θ = θ_0 + λ Σ w_t Δ_t"
    if row.vote:
        equation = "θ = θ_0 + λ Σ_{t agrees} w_t mask(Δ_t)" + (" / Σ_{t agrees} w_t" if row.normalize else "")
    return Method(
        name=row.name,
        title=row.title,
        equation=equation,
        source=row.source,
        use=row.use,
        plan=lambda spec, o: _plan(row, spec, o),
        options=_options(row),
        width=lambda spec, o: _width(row, spec),
        coefficients=_coefficients if row.mask is _masks.keep_all else None,
        refuse=refuse_magprune if row.mask is magprune else None,
        differs=row.paper,
    )


_L1 = "mergekit: rescale restores each tensor's L1 norm"
_WEIGHTED = "signs are elected on weighted updates and the divisor is the agreeing weight"
_COUNTED = "signs are elected on unweighted updates and the divisor is how many agree (as in PEFT)"
_TIES = f"mergekit: {_WEIGHTED}; paper: {_COUNTED}"
_DARE = f"{_L1}; paper: divides by density"
_DARE_TIES = f"{_L1}, {_WEIGHTED}; paper: divides by density, {_COUNTED}"
_DELLA_LINEAR = f"{_L1}; paper: divides by each entry's probability"
_DELLA = f"{_L1}, {_WEIGHTED}; paper: divides by each entry's probability, {_COUNTED}"

_ROWS = (
    _Row("task_arithmetic", "Task arithmetic", _masks.keep_all, False, False, False,
         "Ilharco et al. 2022, arXiv 2212.04089",
         "Different tasks of one base; tune lambda, from 0.02 up."),
    _Row("ties", "TIES", _masks.trim, True, True, False,
         "Yadav et al. 2023, arXiv 2306.01708",
         "Several tasks that disagree in sign; density 0.2 is the paper's.", _TIES),
    _Row("dare_linear", "DARE (linear)", _masks.random_drop, False, False, True,
         "Yu et al. 2023, arXiv 2311.03099",
         "Task arithmetic after random drops: less interference between large models.", _DARE),
    _Row("dare_ties", "DARE-TIES", _masks.random_drop, True, False, True,
         "Yu et al. 2023, arXiv 2311.03099",
         "DARE's drops with the sign vote of TIES.", _DARE_TIES),
    _Row("della", "DELLA", magprune, True, True, True,
         "Deep et al. 2024, arXiv 2406.11617",
         "DARE-TIES where large entries are dropped less often.", _DELLA),
    _Row("della_linear", "DELLA (linear)", magprune, False, False, True,
         "Deep et al. 2024, arXiv 2406.11617",
         "DELLA's drops without the vote.", _DELLA_LINEAR),
    _Row("breadcrumbs", "Model Breadcrumbs", _masks.mask_outliers, False, False, False,
         "Davari & Belilovsky 2023, arXiv 2312.06795",
         "Many tasks: outliers and noise of every update are cut."),
    _Row("breadcrumbs_ties", "Breadcrumbs-TIES", _masks.mask_outliers, True, False, False,
         "Davari & Belilovsky 2023, arXiv 2312.06795; mergekit",
         "Breadcrumbs' cut with the sign vote of TIES."),
)  # fmt: skip

METHODS = tuple(_method(row) for row in _ROWS)
