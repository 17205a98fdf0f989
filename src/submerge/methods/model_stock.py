"""Model Stock: from the base towards the mean, as far as the updates agree.

θ = θ_0 + r · mean Δ_t,  r = T c / (1 + (T−1) c),  c = mean pairwise cosine of the updates,
per tensor, or (`filter_wise`) per row along the last axis. Jang et al. 2024, arXiv 2403.19522.
"""

from __future__ import annotations

from submerge.algebra import Chunk, Gram, combine, total
from submerge.deferred import torch
from submerge.methods._base import FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

OPTIONS = (
    Option("filter_wise", bool, False, "a ratio for each row, not one for the tensor"),
    Option(
        "variant",
        str,
        "mergekit",
        "mergekit: products of norms are at least 1e-6; paper: exact cosines",
        choices=("mergekit", "paper"),
    ),
)

SINGULAR = 1e-6
"""Below this |1 + (T − 1) c| the ratio has no bound: the updates point away from one another."""
MERGEKIT_FLOOR = 1e-6
"""The least product of two norms by which mergekit divides."""


def _width(spec: TensorSpec, o: Values) -> int:
    return max(1, spec.shape[-1]) if o["filter_wise"] and spec.shape else 1


def _ratio(gram: torch.Tensor, floor: float) -> torch.Tensor:
    """Return r for Gram matrices [..., T, T]: 0 (the base) where 1 + (T−1)c vanishes."""
    count = gram.shape[-1]
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    products = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    cosines = (gram / products.clamp(min=floor)).clamp(-1, 1)
    pairs = torch.triu_indices(count, count, 1)
    c = cosines[..., pairs[0], pairs[1]].mean(-1)
    divisor = 1 + (count - 1) * c
    singular = divisor.abs() < SINGULAR
    return torch.where(singular, 0.0, count * c / torch.where(singular, 1.0, divisor))


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    floor = MERGEKIT_FLOOR if o["variant"] == "mergekit" else torch.finfo(torch.float64).tiny
    if not o["filter_wise"]:
        gram = yield Gram()
        share = float(_ratio(torch.from_numpy(gram), floor)) / spec.count
        return lambda chunk: combine(chunk.updates, [share] * spec.count)

    def fold(chunk: Chunk) -> torch.Tensor:
        rows = chunk.rows.double().transpose(0, 1)
        ratio = _ratio(rows @ rows.transpose(1, 2), floor).to(chunk.updates.dtype)
        mean = total(chunk.updates, out=chunk.scratch(0)).div_(spec.count)
        return (mean.view(-1, chunk.width) * ratio.unsqueeze(1)).reshape(-1)

    return fold


METHODS = (
    Method(
        name="model_stock",
        title="Model Stock",
        equation="θ = θ_0 + T c/(1+(T−1)c) · mean Δ_t",
        source="Jang et al. 2024, arXiv 2403.19522",
        use="Several fine-tunes of the same task; nothing to tune.",
        plan=_plan,
        options=OPTIONS,
        min_models=2,
        width=_width,
        differs="mergekit's floor of 1e-6 pulls tensors with tiny updates (norms below 1e-3) to the base.",
    ),
)
