"""SLERP: the great arc between the base and one other model, tensor by tensor.

θ = sin((1−t)Ω)/sinΩ · θ_0 + sin(tΩ)/sinΩ · θ_1,  cosΩ = ⟨θ_0, θ_1⟩ / (‖θ_0‖ ‖θ_1‖);
straight interpolation where |cosΩ| > 0.9995. Shoemake 1985.
"""

from __future__ import annotations

import math

from submerge.algebra import Gram, WeightedSum, slerp_coefficients
from submerge.methods._base import REQUIRED, FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

OPTIONS = (Option("t", float, REQUIRED, "0: the base, 1: the other model", tune=True),)

LINEAR_ABOVE = 0.9995
"""The |cosine| above which the arc is taken for a straight line (mergekit's threshold)."""
SHORTEST = 1e-8
"""Vectors no longer than this are not normalised: their direction is noise."""


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    gram = yield Gram()
    first, second = (norm if (norm := math.sqrt(gram[i, i])) > SHORTEST else 1.0 for i in (0, 1))
    coefficients = slerp_coefficients(float(gram[0, 1]) / (first * second), o["t"], LINEAR_ABOVE)
    return WeightedSum(coefficients)


METHODS = (
    Method(
        name="slerp",
        title="SLERP",
        equation="θ = sin((1−t)Ω)/sinΩ θ_0 + sin(tΩ)/sinΩ θ_1",
        source="Shoemake 1985, https://en.wikipedia.org/wiki/Slerp",
        use="Two models; t = 0 is the base model, whatever the order of the list.",
        plan=_plan,
        options=OPTIONS,
        origin="zero",
        base_is_model=True,
        base_required=True,
        min_models=2,
        max_models=2,
    ),
)
