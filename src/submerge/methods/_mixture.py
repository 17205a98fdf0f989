"""What becomes of an expert's weights in a mixture of experts: they are copied, or get noise and a scale.

A mixture runs the feed-forward blocks E_k of several models, y = Σ_k g_k(x) E_k(x), and its gate g chooses
among them for each token (Shazeer et al. 2017, arXiv 1701.06538). No weights are merged: this is no method
that a recipe of a merge can name.
"""

from __future__ import annotations

from typing import Any

from submerge.algebra import Chunk, WeightedSum, normal
from submerge.deferred import npt
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["MIXTURE"]

OPTIONS = (
    Option("noise_scale", float, 0.0, "standard deviation of the noise that is added"),
    Option("residual_scale", float, 1.0, "factor on what an expert adds to the residual stream"),
)


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    yield from ()  # no reduction is needed
    noise, scaled = o["noise_scale"], WeightedSum([o["residual_scale"]])

    def with_noise(chunk: Chunk) -> npt.NDArray[Any]:
        chunk.values[0] += noise * normal(chunk.keys[0], chunk.start, chunk.values.shape[1])
        return scaled(chunk)

    return with_noise if noise else scaled


MIXTURE = Method(
    name="moe",
    title="Mixture of experts",
    equation="y = Σ_k g_k(x) E_k(x)",
    source="Shazeer et al. 2017, arXiv 1701.06538",
    use="Fine-tunes that are to keep their skills apart, in a model that is larger than each.",
    plan=_plan,
    options=OPTIONS,
    origin="zero",
)
