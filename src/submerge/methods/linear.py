"""Linear (model soup): the weighted average of the weights.

θ = Σ w_t θ_t / Σ w_t  (without the division if `normalize` is false).
Wortsman et al. 2022, arXiv 2203.05482.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from submerge.algebra import WeightedSum
from submerge.errors import Problem, RequestError
from submerge.methods._base import REQUIRED, FoldPlan, Method, Option, TensorSpec, Values
from submerge.methods._weights import normalised, refuse_cancelled

__all__ = ["METHODS"]

OPTIONS = (
    Option("weight", float, REQUIRED, "share of each model", scope="model", tune=True),
    Option("normalize", bool, True, "divide by the sum of the weights"),
)

SUMS_TO_ONE = 1e-9
"""What the sum of weights may be off by and count as 1."""


def _refuse(spec: TensorSpec, o: Values) -> None:
    if o["normalize"]:
        refuse_cancelled(spec, o["weight"], "normalize")


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    yield from ()  # no reduction is needed
    weights = normalised(o["weight"]) if o["normalize"] else o["weight"]
    return WeightedSum(weights)


def _coefficients(o: Values) -> Sequence[float]:
    """Return the share of each update: exact only where they sum to 1, else the base is scaled too."""
    weights = o["weight"]
    total = math.fsum(weights)
    if o["normalize"] and total:
        return normalised(weights)
    if abs(total - 1) > SUMS_TO_ONE:
        what = f"the weights sum to {total:g}: the base would be scaled, which no update can say"
        raise RequestError(Problem(what, "", "set normalize: true, or use task_arithmetic"))
    return list(weights)


METHODS = (
    Method(
        name="linear",
        title="Linear (model soup)",
        equation="θ = Σ w_t θ_t / Σ w_t",
        source="Wortsman et al. 2022, arXiv 2203.05482",
        use="Fine-tunes of one base on the same or similar tasks; the first thing to try.",
        plan=_plan,
        refuse=_refuse,
        coefficients=_coefficients,
        options=OPTIONS,
        origin="zero",
        base_is_model=True,
    ),
)
