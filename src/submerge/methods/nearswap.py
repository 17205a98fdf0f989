"""NearSwap: the other model where it is near the base, and a step of length t towards it elsewhere.

θ = θ_0 + w Δ,  w = t/|Δ| within [0, 1], element by element: Δ is clipped to [−t, t].
alchemonaut, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
"""

from __future__ import annotations

from typing import Any

from submerge.algebra import Chunk
from submerge.deferred import npt
from submerge.kernels import clip, scale
from submerge.methods._base import REQUIRED, FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

OPTIONS = (Option("t", float, REQUIRED, "the most that an element of the base is moved", tune=True),)

NEAREST = 1e-6
"""A difference smaller than this is divided by as if it were this large (as in mergekit)."""


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    yield from ()  # no reduction is needed
    most = max(0.0, o["t"])

    def fold(chunk: Chunk) -> npt.NDArray[Any]:
        update: npt.NDArray[Any] = chunk.values[0]
        if most < NEAREST:  # so that t is left of NEAREST itself
            scale(update, update.dtype.type(most / NEAREST))
        clip(update, update.dtype.type(most))
        return update

    return fold


METHODS = (
    Method(
        name="nearswap",
        title="NearSwap",
        equation="θ = θ_0 + min(1, t/|Δ|) Δ",
        source="alchemonaut, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001; mergekit",
        use="One model with a little of another: no element moves further than t.",
        plan=_plan,
        options=OPTIONS,
        max_models=1,
    ),
)
