"""Passthrough: one model's weights, copied or scaled.

θ = s θ_1.
"""

from __future__ import annotations

from submerge.algebra import WeightedSum
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

OPTIONS = (Option("scale", float, 1.0, "factor on the weights", scope="model"),)


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    yield from ()  # no reduction is needed
    return WeightedSum(o["scale"])


METHODS = (
    Method(
        name="passthrough",
        title="Passthrough",
        equation="θ = s θ_1",
        source="folklore",
        use="To convert, reshard or rescale a checkpoint.",
        plan=_plan,
        options=OPTIONS,
        origin="zero",
        max_models=1,
    ),
)
