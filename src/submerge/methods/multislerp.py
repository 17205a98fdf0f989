"""Multi-SLERP: the mean direction of any number of models, at the mean of their lengths.

θ = θ_0 + ℓ · m/‖m‖,  m = Σ w_t Δ_t/‖Δ_t‖,  ℓ = Σ w_t ‖Δ_t‖   (θ_0 = 0 without a base).

Goddard, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea. mergekit takes one more step, to the
weighted sum of the directions' projections to the tangent plane at m/‖m‖. By the choice of m that is
m − ⟨m, m/‖m‖⟩ m/‖m‖ = 0: the step has no length, and is left out here.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from submerge.algebra import Chunk, Gram, Totals, combine
from submerge.deferred import np, npt
from submerge.kernels import sum_squares
from submerge.methods._base import REQUIRED, FoldPlan, Method, Option, TensorSpec, Values
from submerge.methods._weights import normalised, refuse_cancelled

__all__ = ["METHODS"]

Vector: TypeAlias = "npt.NDArray[np.float64]"

OPTIONS = (
    Option("weight", float, REQUIRED, "share of each model", scope="model", tune=True),
    Option("normalize_weights", bool, True, "divide the weights by their sum"),
    Option("eps", float, 1e-8, "added to the norms by which updates are divided", low=0),
)

CANCELLED = 1e-6
"""The ‖m‖ below which the directions cancel: what is left of them is float32's rounding."""
SMALL = 2.0**-100
"""Coefficients below this are not precise in float32, nor are the products with them."""
MEASURED = 0.1
"""The ‖m‖ below which it is measured by a pass of its own: as a difference of products it is not precise."""


def _refuse(spec: TensorSpec, o: Values) -> None:
    if o["normalize_weights"]:
        refuse_cancelled(spec, o["weight"], "normalize_weights")


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    if spec.count == 1:
        return lambda chunk: combine(chunk.values, [1.0])
    weights = np.array(normalised(o["weight"]) if o["normalize_weights"] else o["weight"])
    gram = yield Gram()
    norms = np.sqrt(np.diag(gram))
    divisors = norms + o["eps"]
    mean = np.divide(weights, divisors, out=np.zeros_like(norms), where=divisors != 0)  # m in the updates
    length = _length(mean, gram)
    if length < MEASURED:
        length = math.sqrt((yield Totals(lambda chunk: [_square(chunk, mean)]))[0])
    if length < max(o["eps"], CANCELLED):
        return lambda chunk: combine(chunk.values, weights.tolist())
    # mergekit adds eps to the length of the last step, too, which is 0
    coefficients = mean * (_sum(weights * norms) * math.cos(o["eps"]) / length)
    return lambda chunk: combine(chunk.values, coefficients.tolist())


def _length(mean: Vector, gram: Vector) -> float:
    """Return ‖Σ c_t Δ_t‖ for coefficients c [T]; NaN where `gram` [T, T] holds NaN or Inf."""
    square = _sum(np.outer(mean, mean) * gram)
    return math.nan if math.isnan(square) else math.sqrt(max(0.0, square))


def _square(chunk: Chunk, coefficients: Vector) -> float:
    """Return the chunk's part of ‖Σ c_t Δ_t‖²."""
    values = chunk.values
    if np.any((coefficients != 0) & (np.abs(coefficients) < SMALL)):  # as updates of 1e30 have them
        values = values.astype(np.float64)
    return sum_squares(combine(values, coefficients.tolist()))


def _sum(terms: Vector) -> float:
    """Return the sum of the terms, rounded once; NaN where one of them is NaN or Inf."""
    return math.fsum(terms.ravel().tolist()) if np.isfinite(terms).all() else math.nan


METHODS = (
    Method(
        name="multislerp",
        title="Multi-SLERP",
        equation="θ = θ_0 + Σ w_t ‖Δ_t‖ · m/‖m‖,  m = Σ w_t Δ_t/‖Δ_t‖   (θ_0 = 0 without a base)",
        source="Goddard, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        use="The mean direction of several models, each by its weight, at the mean of their lengths.",
        plan=_plan,
        refuse=_refuse,
        options=OPTIONS,
        origin="either",
        differs="mergekit refuses three or more models whose directions cancel (all updates of a tensor are "
        "zero): here, as for two, their weighted sum is taken.",
    ),
)
