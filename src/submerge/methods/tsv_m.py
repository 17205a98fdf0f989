"""TSV-M: the leading singular vectors of every update, made orthogonal to those of the others.

With w_t Δ_t ≈ U_t diag(s_t) V_tᵀ cut to the leading k triplets, U = [U_1 … U_T], s and V likewise,

    θ = θ_0 + α polar(U) diag(s) polar(V)ᵀ,     polar(X) = X (XᵀX)^(−1/2).

Where updates share directions U is rank-deficient, and its polar factor is not unique. The authors' code
takes the vectors that LAPACK happens to return; here it is the partial isometry on U's range.
Gargiulo et al. 2025, arXiv 2412.00081.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from submerge.algebra import Update, frame
from submerge.methods._base import Merged, Method, Option, TensorSpec, Values
from submerge.methods._matrix import WEIGHT, leading_block, mean_plan, negligible, orthogonalised, touching

__all__ = ["METHODS"]

OPTIONS = (
    WEIGHT,
    Option("scale", float, 1.0, "factor α on the merged update", tune=True),
    Option("rank", int, "auto", "triplets kept of each update; auto: min(m, n) / T", low=1, word="auto"),
)


def _matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    core_space = frame(updates)
    k = max(1, min(spec.shape) // spec.count) if o["rank"] == "auto" else o["rank"]
    blocks = []
    for core, weight in touching(core_space, o["weight"]):
        leading = leading_block(core, negligible(core_space), k)
        blocks.append(replace(leading, s=leading.s * (weight * o["scale"])))
    merged = orthogonalised(blocks, core_space)
    return Merged(core_space.lift(merged), {"rank": max((len(b.s) for b in blocks), default=0)})


METHODS = (
    Method(
        name="tsv_m",
        title="TSV-M (task singular vectors)",
        equation="θ = θ_0 + α polar([U_1 … U_T]) diag(s_1, …, s_T) polar([V_1 … V_T])ᵀ",
        source="Gargiulo et al. 2025, arXiv 2412.00081",
        use="Many different tasks of one base, also where their updates overlap; little to tune.",
        plan=mean_plan,
        matrix=_matrix,
        options=OPTIONS,
        differs="updates that share directions: the polar factor is a partial isometry, not LAPACK's choice",
    ),
)
