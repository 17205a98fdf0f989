"""Linear (model soup): the weighted average of the weights.

θ = Σ w_t θ_t / Σ w_t  (without the division if `normalize` is false).
Wortsman et al. 2022, arXiv 2203.05482.
"""

from __future__ import annotations

from submerge.algebra import combine
from submerge.errors import Problem, RequestError
from submerge.methods._base import REQUIRED, FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    weights = o["weight"]
    if o["normalize"]:
        total = sum(weights)
        if total == 0:
            raise RequestError(
                Problem(
                    "the weights sum to zero and cannot be normalised",
                    f"tensor {spec.name}",
                    "change the weights, or set normalize: false",
                )
            )
        weights = [w / total for w in weights]
    return lambda chunk: combine(chunk.updates, weights)
    yield  # no statistic is needed


METHODS = (
    Method(
        name="linear",
        title="Linear (model soup)",
        equation="θ = Σ w_t θ_t / Σ w_t",
        source="Wortsman et al. 2022, arXiv 2203.05482",
        use="Fine-tunes of one base on the same or similar tasks; the first thing to try.",
        plan=_plan,
        options=(
            Option("weight", float, REQUIRED, "share of each model", scope="model", tune=True),
            Option("normalize", bool, True, "divide by the sum of the weights"),
        ),
        origin="zero",
        base_is_model=True,
    ),
)
