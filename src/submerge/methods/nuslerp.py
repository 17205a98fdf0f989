"""NuSLERP: SLERP of two models, or of their updates where a base is named.

With t = w_2 / (w_1 + w_2): slerp over the flattened tensor (`nuslerp_flatten`, the default), or
separately over each row along the last axis, or (`nuslerp_row_wise`) over each column, along the
first axis. Shoemake 1985; names and defaults are mergekit's.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from submerge.algebra import Chunk, ColumnGram, Gram, WeightedSum, row_products, slerp_coefficients
from submerge.deferred import np, npt
from submerge.methods._base import REQUIRED, FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

OPTIONS = (
    Option("weight", float, REQUIRED, "share of each model", scope="model", tune=True),
    Option("nuslerp_flatten", bool, True, "one angle for the whole tensor"),
    Option("nuslerp_row_wise", bool, False, "without flatten: an angle for each column, not row"),
)

Vector: TypeAlias = "npt.NDArray[np.float64]"

SHORTEST = 1e-7
"""The least length by which a vector is divided."""
COLLINEAR = 1 - 5e-8
"""Above this |cos| the straight line is taken: it is the arc to float32's precision, or (for opposite
vectors) there is no one arc, and its coefficients would amplify rounding without bound."""
CANCELLED = 1e-6
"""Weights whose sum is smaller cancel, and count as equal (as in mergekit)."""


def _width(spec: TensorSpec, o: Values) -> int:
    if o["nuslerp_flatten"]:
        return 1
    if o["nuslerp_row_wise"] and len(spec.shape) > 1:
        return max(1, spec.numel // max(1, spec.shape[0]))
    return max(1, spec.shape[-1] if spec.shape else 1)


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    first, second = o["weight"]
    t = 0.5 if abs(first + second) < CANCELLED else second / (first + second)
    if o["nuslerp_flatten"]:
        gram = yield Gram()
        a, b = (max(math.sqrt(gram[i, i]), SHORTEST) for i in (0, 1))
        coefficients = slerp_coefficients(float(gram[0, 1]) / (a * b), t, COLLINEAR)
        return WeightedSum(coefficients)
    if o["nuslerp_row_wise"] and len(spec.shape) > 1:
        columns = yield ColumnGram()
        by_column = _coefficients(columns[0, 0], columns[1, 1], columns[0, 1], t)
        return lambda chunk: _mix(chunk, *by_column)

    def fold(chunk: Chunk) -> npt.NDArray[Any]:
        x, y = chunk.values.reshape(2, -1, chunk.width)
        a, b = _coefficients(row_products(x, x), row_products(y, y), row_products(x, y), t)
        return _mix(chunk, a[:, np.newaxis], b[:, np.newaxis])

    return fold


def _coefficients(xx: Vector, yy: Vector, xy: Vector, t: float) -> tuple[Vector, Vector]:
    """Return the two slerp coefficients of every vector pair, from its inner products.

    One by one: of arrays, the last bit of a sine depends on the processor.
    """
    cosines = xy / (np.maximum(np.sqrt(xx), SHORTEST) * np.maximum(np.sqrt(yy), SHORTEST))
    pairs = [slerp_coefficients(cos, t, COLLINEAR) for cos in cosines.tolist()]
    a, b = np.array(pairs).reshape(-1, 2).T
    return a, b


def _mix(chunk: Chunk, a: Vector, b: Vector) -> npt.NDArray[Any]:
    """Return a x + b y, for coefficients of each row [rows, 1] or each column [width], in the place of x."""
    x, y = chunk.values.reshape(2, -1, chunk.width)
    x *= a.astype(x.dtype)
    y *= b.astype(y.dtype)
    x += y
    return x.reshape(-1)


METHODS = (
    Method(
        name="nuslerp",
        title="NuSLERP",
        equation="θ = θ_0 + slerp(Δ_1, Δ_2; t),  t = w_2 / (w_1 + w_2)   (θ_0 = 0 without a base)",
        source="mergekit; Shoemake 1985",
        use="Two models whose updates (or weights) should keep their length as they are averaged.",
        plan=_plan,
        options=OPTIONS,
        origin="either",
        min_models=2,
        max_models=2,
        width=_width,
    ),
)
