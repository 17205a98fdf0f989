"""Iso-C and Iso-CTS: a merged update whose singular values are all equal.

Iso-C flattens the spectrum of the sum, Δ = Σ w_t Δ_t = U diag(s) Vᵀ:

    θ = θ_0 + λ mean(s) U Vᵀ.

Iso-CTS keeps of the q directions of the sum the leading k ("common"), and fills the other q − k with the
leading ones of each update outside of them ("task-specific"), of w_t Δ_t − U_c U_cᵀ w_t Δ_t:

    θ = θ_0 + λ mean(s) polar([U_1 … U_T U_c]) polar([V_1 … V_T V_c])ᵀ

with k = q − T round((q − ⌊fraction q⌋) / T), so that every update has as many.

q is the numerical rank of the sum, at most min(m, n): with low-rank updates it is far below. The authors'
code takes q = min(m, n) always, and so spreads over directions that no update has, which are arbitrary.
Marczak et al. 2025, arXiv 2502.04959.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from submerge.algebra import Frame, Update, Zero, frame, rooted, weighted_sum
from submerge.deferred import torch
from submerge.methods._base import Merged, Method, Option, TensorSpec, Values
from submerge.methods._matrix import (
    WEIGHT,
    Block,
    assembled,
    gram,
    is_tall,
    mean_plan,
    negligible,
    product,
    times,
    touching,
)

__all__ = ["METHODS"]


def _sum(whole: Frame, o: Values) -> tuple[Update, torch.Tensor, torch.Tensor]:
    """Return the sum in the frame's coordinates, its singular values and its vectors of the short side."""
    total = weighted_sum(whole.cores, o["weight"])
    if isinstance(total, Zero):
        return total, torch.zeros(0), torch.zeros(0)
    return total, *rooted(gram(total), negligible(whole))


def _iso_c(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    whole = frame(updates)
    total, s, short = _sum(whole, o)
    if not len(s):
        return Merged(whole.lift(Zero(total.shape)), {"rank": 0})
    level = float(s.mean())
    merged = product(total, (short * (o["scale"] * level / s)) @ short.T)
    return Merged(whole.lift(merged), {"rank": len(s), "level": level})


def _iso_cts(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    whole = frame(updates)
    share = negligible(whole)
    total, s, short = _sum(whole, o)
    terms = touching(whole, o["weight"])
    q = int((s > share * max((abs(w) * core.norm for core, w in terms), default=0.0)).sum())
    if not q:
        return Merged(whole.lift(Zero(total.shape)), {"rank": 0})
    each = min(q // spec.count, round((q - int(o["fraction"] * q)) / spec.count))
    k = q - spec.count * each
    common = Block(s[:k], short[:, :k], times(total, short[:, :k]))
    left = common.long / common.s.to(common.long.dtype) if is_tall(total) else common.short
    blocks = [common]
    if each:
        blocks += [_outside(core, left, weight, share, each) for core, weight in terms]
    level = float(torch.cat([b.s for b in blocks]).mean())
    even = [Block(torch.full_like(b.s, o["scale"] * level), b.short, b.long) for b in blocks]
    figures = {"rank": sum(len(b.s) for b in blocks), "common": k, "level": level}
    return Merged(whole.lift(assembled(even, whole)), figures)


def _outside(core: Update, left: torch.Tensor, weight: float, share: float, k: int) -> Block:
    """Return the leading k triplets of w (Δ − L Lᵀ Δ), for orthonormal columns L of the output space.

    What is left of an update that lies inside L is rounding, and is left out.
    """
    squares = gram(core)
    norm = float(squares.trace().sqrt())
    if is_tall(core):
        inside = core.rmatmul(left.T)
        squares -= inside.double().T @ inside.double()
        _, short = rooted(squares, 0, k)
        long = times(core, short) - left @ (inside @ short.to(inside.dtype))
    else:
        squares -= left @ (left.T @ squares)
        squares -= (squares @ left) @ left.T
        _, short = rooted(squares, 0, k)
        long = times(core, short - left @ (left.T @ short))
    s = long.norm(dim=0).double()
    held = s > share * norm
    return Block(s[held] * abs(weight), short[:, held], long[:, held] * math.copysign(1, weight))


_SCALE = Option("scale", float, 1.0, "factor λ on the merged update", tune=True)
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
        options=(WEIGHT, _SCALE),
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
        options=(
            WEIGHT,
            _SCALE,
            Option("fraction", float, 0.8, "share of the directions that are common", low=0, high=1),
        ),
        differs=_RANK,
    ),
)
