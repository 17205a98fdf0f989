"""Cat: the exact weighted sum of the updates.

θ = θ_0 + λ Σ w_t Δ_t. Of low-rank updates it is the concatenation of their factors: nothing is lost, and
the rank is the sum of the ranks. (`combination_type="cat"` of PEFT's `add_weighted_adapter`; the sum is
that of task arithmetic, Ilharco et al. 2022, arXiv 2212.04089.)
"""

from __future__ import annotations

from collections.abc import Sequence

from submerge.algebra import combine
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values
from submerge.methods._matrix import WEIGHT

__all__ = ["METHODS"]

OPTIONS = (WEIGHT, Option("scale", float, 1.0, "factor λ on the merged update", tune=True))


def _coefficients(o: Values) -> Sequence[float]:
    return [o["scale"] * weight for weight in o["weight"]]


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    yield from ()  # no reduction is needed
    factors = _coefficients(o)
    return lambda chunk: combine(chunk.values, factors)


METHODS = (
    Method(
        name="cat",
        title="Cat (concatenation)",
        equation="θ = θ_0 + λ Σ w_t Δ_t",
        source="PEFT, add_weighted_adapter; the sum of Ilharco et al. 2022, arXiv 2212.04089",
        use="All of several adapters in one, exactly; the rank becomes the sum of theirs.",
        plan=_plan,
        coefficients=_coefficients,
        options=OPTIONS,
    ),
)
