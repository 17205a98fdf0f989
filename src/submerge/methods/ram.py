"""RAM: updates of elements that several models change are averaged, those of one model are kept whole.

A model changes an element where |Δ_t| > ε; n is how many do.

    θ = θ_0 + Σ_{t changes} Δ_t / n                        (`ram`)
    θ = θ_0 + Σ_{t changes} Δ_t · (λ_t if n = 1, else 1/n)   (`ramplus_tl`)

λ_t = 1 + r · min(ρ_t, α), where ρ_t is the number of elements of the tensor that model t shares with others,
divided by that of those which it alone changes. Yuan et al. 2026, arXiv 2601.13572.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from submerge.algebra import Chunk, Totals
from submerge.deferred import npt
from submerge.kernels import Floats, add_shares, count_changed, count_unique
from submerge.methods._base import Fold, FoldPlan, Method, Option, TensorSpec, Values

__all__ = ["METHODS"]

EPSILON = Option("epsilon", float, 1e-5, "a smaller update does not count as a change", low=0)
OPTIONS = (
    Option("r", float, 0.1, "how much an overlap amplifies what one model alone changes", tune=True),
    Option("alpha", float, 0.2, "the largest ratio of overlap that counts", low=0),
    EPSILON,
)


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    yield from ()  # no reduction is needed
    return _mean(o["epsilon"], [1.0] * spec.count)


def _plan_rescaled(spec: TensorSpec, o: Values) -> FoldPlan:
    def changes(chunk: Chunk) -> list[tuple[int, int]]:
        least = chunk.values.dtype.type(o["epsilon"])
        counts = _counts(chunk, o["epsilon"])
        return [count_unique(row, counts, least) for row in chunk.values]

    factors = []
    for changed, unique in (yield Totals(changes)).tolist():
        overlap = (changed - unique) / max(1.0, unique)
        factors.append(1 + o["r"] * min(overlap, o["alpha"]))
    return _mean(o["epsilon"], factors)


def _mean(epsilon: float, factors: Sequence[float]) -> Fold:
    """Return the fold of the mean of the updates that change an element; a single one has its factor."""

    def fold(chunk: Chunk) -> npt.NDArray[Any]:
        counts, total = _counts(chunk, epsilon), chunk.row(1)
        number = total.dtype.type
        total[:] = 0
        for row, factor in zip(chunk.values, factors, strict=True):
            add_shares(total, row, counts, number(epsilon), number(factor))
        return total

    return fold


def _counts(chunk: Chunk, epsilon: float) -> Floats:
    """Return how many models change each element [n], in scratch row 0."""
    counts = chunk.row(0)
    counts[:] = 0
    for row in chunk.values:
        count_changed(counts, row, counts.dtype.type(epsilon))
    return counts


METHODS = (
    Method(
        name="ram",
        title="RAM",
        equation="θ = θ_0 + Σ_{|Δ_t| > ε} Δ_t / n,  n = how many |Δ_t| > ε",
        source="Yuan et al. 2026, arXiv 2601.13572",
        use="Agents trained by reinforcement learning: sparse updates that seldom meet keep their size.",
        plan=_plan,
        options=(EPSILON,),
    ),
    Method(
        name="ramplus_tl",
        title="RAM+ (tensor-local)",
        equation="θ = θ_0 + Σ_{|Δ_t| > ε} Δ_t · (λ_t if n = 1 else 1/n),  λ_t = 1 + r min(ρ_t, α)",
        source="Yuan et al. 2026, arXiv 2601.13572; mergekit",
        use="As RAM, where what one model alone changes is amplified by how much it shares with others.",
        plan=_plan_rescaled,
        options=OPTIONS,
        differs="The paper counts shared and unique elements over the entire model; mergekit, and Submerge, "
        "over each tensor.",
    ),
)
