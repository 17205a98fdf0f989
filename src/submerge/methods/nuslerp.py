"""NuSLERP: SLERP of two models, or of their updates where a base is named.

With t = w_2 / (w_1 + w_2): slerp over the flattened tensor (`nuslerp_flatten`, the default), or
separately over each row along the last axis, or (`nuslerp_row_wise`) over each column, along the
first axis. Shoemake 1985; names and defaults are mergekit's.
"""

from __future__ import annotations

import math

from submerge.algebra import Chunk, ColumnGram, Gram, combine, slerp_coefficients
from submerge.deferred import torch
from submerge.methods._base import REQUIRED, FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

OPTIONS = (
    Option("weight", float, REQUIRED, "share of each model", scope="model", tune=True),
    Option("nuslerp_flatten", bool, True, "one angle for the whole tensor"),
    Option("nuslerp_row_wise", bool, False, "without flatten: an angle for each column, not row"),
)

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
        return lambda chunk: combine(chunk.updates, coefficients)
    if o["nuslerp_row_wise"] and len(spec.shape) > 1:
        columns = yield ColumnGram()
        by_column = _coefficients(columns[0, 0], columns[1, 1], columns[0, 1], t)
        return lambda chunk: _mix(chunk, *by_column)

    def fold(chunk: Chunk) -> torch.Tensor:
        x, y = chunk.rows.double()
        a, b = _coefficients((x * x).sum(1), (y * y).sum(1), (x * y).sum(1), t)
        return _mix(chunk, a.unsqueeze(1), b.unsqueeze(1))

    return fold


def _coefficients(
    xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor, t: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two slerp coefficients of every vector pair, from its inner products."""
    cos = (xy / (xx.sqrt().clamp(min=SHORTEST) * yy.sqrt().clamp(min=SHORTEST))).clamp(-1, 1)
    straight = cos.abs() >= COLLINEAR
    omega = torch.acos(torch.where(straight, torch.zeros_like(cos), cos))
    a = torch.where(straight, 1 - t, torch.sin((1 - t) * omega) / torch.sin(omega))
    b = torch.where(straight, t, torch.sin(t * omega) / torch.sin(omega))
    return a, b


def _mix(chunk: Chunk, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a x + b y, for coefficients of each row [rows, 1] or each column [width]."""
    x, y = chunk.rows
    device, dtype = x.device, x.dtype
    mixed: torch.Tensor = a.to(device, dtype) * x + b.to(device, dtype) * y
    return mixed.reshape(-1)


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
