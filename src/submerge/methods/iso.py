"""Iso-C and Iso-CTS: a merged update whose singular values are all equal.

Iso-C flattens the spectrum of the sum, Δ = Σ w_t Δ_t = U diag(s) Vᵀ:

    θ = θ_0 + λ mean(s) U Vᵀ.

Iso-CTS takes of the q directions of the sum the leading k, the common subspace, and in the place of the other
q − k the leading ones of each update outside of it, the task-specific subspaces, of w_t (Δ_t − U_c U_cᵀ Δ_t):

    θ = θ_0 + λ mean(s) polar([U_1 … U_T U_c]) polar([V_1 … V_T V_c])ᵀ

with s = (s_1, …, s_T, s_c) the singular values of all that is taken, and so that every update has as many,

    k = q − T round((q − ⌊fraction q⌋) / T).

q is the numerical rank of the sum, at most min(m, n): with low-rank updates it is far below. The authors'
code takes q = min(m, n) always, and so spreads over directions that no update has, which are arbitrary.
Marczak et al. 2025, arXiv 2502.04959.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from submerge.algebra import Frame, Update, Zero, frame, lengths, rooted, weighted_sum
from submerge.deferred import torch
from submerge.methods._base import Merged, Method, Option, TensorSpec, Values
from submerge.methods._matrix import (
    WEIGHT,
    SingularBlock,
    is_tall,
    mean_plan,
    negligible,
    orthogonalised,
    short_side_gram,
    short_side_matmul,
    short_side_product,
    touching,
)

__all__ = ["METHODS"]

SCALE = Option("scale", float, 1.0, "factor λ on the merged update", tune=True)
FRACTION = Option("fraction", float, 0.8, "share of the directions that are common", low=0, high=1)


def _iso_c(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    core_space = frame(updates)
    total, s, short = _decomposed_sum(core_space, o)
    if not len(s):
        return Merged(core_space.lift(Zero(total.shape)), {"rank": 0})
    level = float(s.mean())
    # U Vᵀ = Δ V diag(1/s) Vᵀ: no vectors of the long side are needed
    merged = short_side_product(total, (short * (o["scale"] * level / s)) @ short.T)
    return Merged(core_space.lift(merged), {"rank": len(s), "level": level})


def _iso_cts(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    core_space = frame(updates)
    share = negligible(core_space)
    total, s, short = _decomposed_sum(core_space, o)
    terms = touching(core_space, o["weight"])
    # against the largest update, not the sum: where updates cancel, the whole sum may be rounding
    q = int((s > share * max((abs(w) * core.norm for core, w in terms), default=0.0)).sum())
    if not q:
        return Merged(core_space.lift(Zero(total.shape)), {"rank": 0})
    per_task = min(q // spec.count, round((q - int(o["fraction"] * q)) / spec.count))
    k = q - spec.count * per_task
    common = SingularBlock(s[:k], short[:, :k], short_side_matmul(total, short[:, :k]))
    common_left = common.long / common.s.to(common.long.dtype) if is_tall(total) else common.short
    blocks = [common]
    if per_task:
        blocks += [_task_specific(core, common_left, weight, share, per_task) for core, weight in terms]
    level = float(torch.cat([b.s for b in blocks]).mean())
    isotropic = [SingularBlock(torch.full_like(b.s, o["scale"] * level), b.short, b.long) for b in blocks]
    figures = {"rank": sum(len(b.s) for b in blocks), "common": k, "level": level}
    return Merged(core_space.lift(orthogonalised(isotropic, core_space)), figures)


def _decomposed_sum(core_space: Frame, o: Values) -> tuple[Update, torch.Tensor, torch.Tensor]:
    """Return Σ w_t Δ_t in the core space, its singular values and its vectors of the short side."""
    total = weighted_sum(core_space.cores, o["weight"])
    if isinstance(total, Zero):
        return total, torch.zeros(0), torch.zeros(0)
    return total, *rooted(short_side_gram(total), negligible(core_space))


def _task_specific(core: Update, left: torch.Tensor, weight: float, share: float, k: int) -> SingularBlock:
    """Return the leading k triplets of w (Δ − U_c U_cᵀ Δ), for the common left vectors U_c.

    The Gram matrix of the difference is that of Δ less that of the part inside, so that no second matrix as
    large as Δ is formed. What is left of an update that lies inside U_c is rounding, and is left out.
    """
    squares = short_side_gram(core)
    norm = float(squares.trace().sqrt())
    if is_tall(core):
        inside = core.rmatmul(left.T)
        squares -= inside.double().T @ inside.double()
        _, short = rooted(squares, 0, k)
        long = short_side_matmul(core, short) - left @ (inside @ short.to(inside.dtype))
    else:  # here U_c is of the short side: (I − P) Δ Δᵀ (I − P) with P = U_c U_cᵀ
        squares -= left @ (left.T @ squares)
        squares -= (squares @ left) @ left.T
        _, short = rooted(squares, 0, k)
        long = short_side_matmul(core, short - left @ (left.T @ short))
    s = lengths(long, 0).double()
    outside = s > share * norm
    sign = math.copysign(1, weight)
    return SingularBlock(s[outside] * abs(weight), short[:, outside], long[:, outside] * sign)


_SOURCE = "Marczak et al. 2025, arXiv 2502.04959"
_RANK = "the spectrum is spread over the numerical rank of the sum, not over directions that no update has"

METHODS = (
    Method(
        name="iso_c",
        title="Iso-C (isotropic merging)",
        equation="θ = θ_0 + λ mean(s) U Vᵀ, for Σ w_t Δ_t = U diag(s) Vᵀ",
        source=_SOURCE,
        use="Several different tasks of one base that have much in common; tune scale, from 1 up.",
        plan=mean_plan,
        matrix=_iso_c,
        options=(WEIGHT, SCALE),
        differs=_RANK,
    ),
    Method(
        name="iso_cts",
        title="Iso-CTS (isotropic merging in common and task-specific subspaces)",
        equation="θ = θ_0 + λ mean(s) polar([U_1 … U_T U_c]) polar([V_1 … V_T V_c])ᵀ",
        source=_SOURCE,
        use="As Iso-C, for many tasks: each keeps some directions of its own.",
        plan=mean_plan,
        matrix=_iso_cts,
        both_sides=True,
        options=(WEIGHT, SCALE, FRACTION),
        differs=_RANK,
    ),
)
