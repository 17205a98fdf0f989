"""Karcher mean: the Riemannian centre of the models' directions on the unit sphere.

u_t = θ_t/‖θ_t‖;  u ← exp_u( (1/T) Σ log_u u_t ) until the step is below `tol`;
θ = (1/T) Σ ‖θ_t‖ · u.  Karcher 1977; for merging: arXiv 2603.04972.
The iteration runs in the T×T Gram matrix: one pass to read it, one to write the result.
"""

from __future__ import annotations

from submerge.algebra import Gram, WeightedSum, karcher_coefficients
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

OPTIONS = (
    Option("max_iter", int, 10, "the most steps", low=0),
    Option("tol", float, 1e-5, "a step this short ends the iteration", low=0),
)


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    if spec.count == 1:
        return WeightedSum([1.0])
    gram = yield Gram()
    weights = [1 / spec.count] * spec.count
    coefficients = karcher_coefficients(gram, weights, o["max_iter"], o["tol"]).tolist()
    return WeightedSum(coefficients)


METHODS = (
    Method(
        name="karcher",
        title="Karcher mean",
        equation="θ = mean‖θ_t‖ · u,  u = argmin Σ angle(u, θ_t)²",
        source="Karcher 1977; arXiv 2603.04972",
        use="SLERP's midpoint for any number of models.",
        plan=_plan,
        options=OPTIONS,
        origin="zero",
        base_is_model=True,
    ),
)
