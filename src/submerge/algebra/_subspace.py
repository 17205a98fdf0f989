"""Shared subspaces: the directions in which several updates of one weight lie together.

The uncentred 2DSVD (Ding & Ye 2005; SSAM, arXiv 2603.21584, eqs. 8 and 9): the pair of bases that keep
the most of all updates at once, each side for itself,

    U = argmin_{UᵀU=I_k} Σ_t ‖Δ_t − U Uᵀ Δ_t‖²   = top-k eigenvectors of A = Σ_t Δ_t Δ_tᵀ   [m, m]
    V = argmin_{VᵀV=I_k} Σ_t ‖Δ_t − Δ_t V Vᵀ‖²   = top-k eigenvectors of B = Σ_t Δ_tᵀ Δ_t   [n, n]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from submerge.algebra._leading import leading
from submerge.algebra._update import LowRank, Update, Zero
from submerge.deferred import torch

__all__ = ["RankRule", "Shared", "shared_subspace"]


@dataclass(frozen=True)
class RankRule:
    """How many shared directions to keep.

    `kind` is "int" (k = value), "max" (the largest rank among the updates), "energy" (the smallest k
    that keeps this share of Σ‖Δ_t‖² on either side), "frac" (this share of the sum of the updates'
    ranks), or "full" (all that there are).

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, RankRule
        >>> RankRule.parse("energy:0.95")
        RankRule(kind='energy', value=0.95)
        >>> RankRule.parse("16").bound([Dense(torch.ones(8, 4))])
        4
    """

    kind: str
    value: float = 0.0

    @classmethod
    def parse(cls, text: str | int) -> RankRule:
        """Read `16`, `max`, `energy:0.95`, `frac:0.5` or `full`; raise `ValueError` that says so."""
        name, colon, number = str(text).strip().partition(":")
        try:
            if name in ("max", "full") and not colon:
                return cls(name)
            if name in ("energy", "frac") and 0 < float(number) <= 1:
                return cls(name, float(number))
            if not colon and int(name) >= 1:
                return cls("int", int(name))
        except ValueError:
            pass
        what = "a positive whole number, max, full, energy:τ or frac:p with a share in (0, 1]"
        raise ValueError(f"rank must be {what}; found {text!r}")

    def bound(self, updates: Sequence[Update]) -> int:
        """Return the most directions that the rule keeps on a side, as far as the ranks alone tell."""
        ranks = [u.rank for u in updates]
        most = {
            "int": int(self.value),
            "max": max(ranks),
            "frac": max(1, round(self.value * sum(ranks))),
        }.get(self.kind, sum(ranks))
        return min(most, sum(ranks))


@dataclass(frozen=True)
class Shared:
    """The shared bases u [m, k] and v [n, k], orthonormal columns, and what they keep.

    `kept_left` = Σ‖UᵀΔ_t‖² / Σ‖Δ_t‖² and `kept_right` likewise, in [0, 1]. `tied` says that the cut falls
    between eigenvalues that are equal to rounding, so that the subspace is one of several.

    Examples:
        >>> import torch
        >>> from submerge.algebra import LowRank, RankRule, shared_subspace
        >>> update = LowRank(torch.ones(4, 1), torch.ones(1, 9))
        >>> shared = shared_subspace([update, update.scaled(2.0)], RankRule.parse("max"))
        >>> shared.core(update).abs().round(decimals=4)
        tensor([[6.]], dtype=torch.float64)
    """

    u: torch.Tensor
    v: torch.Tensor
    kept_left: float
    kept_right: float
    tied: bool

    def core(self, update: Update) -> torch.Tensor:
        """Return M = Uᵀ Δ V [k, k]: the update in the shared coordinates."""
        if isinstance(update, Zero):
            return self.u.new_zeros(self.u.shape[1], self.v.shape[1])
        if isinstance(update, LowRank):
            left, right = update.left.to(self.u.dtype), update.right.to(self.u.dtype)
            return (self.u.T @ left) @ (right @ self.v)
        return self.u.T @ update.matmul(self.v)


def shared_subspace(
    updates: Sequence[Update], rule: RankRule, *, norms: Sequence[float] | None = None, refine: int = 0
) -> Shared:
    """Return the shared subspace of updates of one shape.

    Args:
        rule: how many directions; both sides get the same number, the larger that either asks for.
        norms: if given, Δ_t / norms[t] takes the place of Δ_t in A and B.
        refine: the number of alternations of A ← Σ Δ_t V Vᵀ Δ_tᵀ and B ← Σ Δ_tᵀ U Uᵀ Δ_t (GLRAM), which never
            raise the two-sided error Σ‖Δ_t − U Uᵀ Δ_t V Vᵀ‖².

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, RankRule, shared_subspace
        >>> first = Dense(torch.diag(torch.tensor([3.0, 1.0, 0.0])))
        >>> second = Dense(torch.diag(torch.tensor([4.0, 0.0, 1.0])))
        >>> shared = shared_subspace([first, second], RankRule.parse(1))
        >>> shared.u.shape, round(shared.kept_left, 3)  # 25 of 27
        (torch.Size([3, 1]), 0.926)
    """
    scaled = [
        u if norms is None or not n else u.scaled(1 / n)
        for u, n in zip(updates, norms or [1.0] * len(updates), strict=True)
    ]
    most = rule.bound(updates)
    share = rule.value if rule.kind == "energy" else 1.0
    left = leading(scaled, "left", most, share)
    right = leading(scaled, "right", most, share)
    k = max(left.enough(share), right.enough(share)) if rule.kind == "energy" else most
    u, v = left.vectors[:, :k], right.vectors[:, :k]
    for _ in range(refine):
        u = _leading_left_vectors([s.matmul(v) for s in scaled], u.shape[1])
        v = _leading_left_vectors([s.rmatmul(u.T).T for s in scaled], v.shape[1])
    kept = (left.kept(k), right.kept(k)) if not refine else _kept_energies(scaled, u, v)
    return Shared(u, v, *kept, left.tied(k) or right.tied(k))


def _leading_left_vectors(projections: Sequence[torch.Tensor], k: int) -> torch.Tensor:
    """Return the k leading left singular vectors of the projections side by side.

    Those are the eigenvectors of Σ Δ_t V Vᵀ Δ_tᵀ for projections Δ_t V: T k columns in the place of an m × m
    matrix, and no squares.
    """
    side_by_side = torch.cat(list(projections), dim=1)
    u: torch.Tensor = torch.linalg.svd(side_by_side, full_matrices=False)[0]
    return u[:, :k]


def _kept_energies(updates: Sequence[Update], u: torch.Tensor, v: torch.Tensor) -> tuple[float, float]:
    """Return Σ‖UᵀΔ_t‖² and Σ‖Δ_t V‖², each as a share of Σ‖Δ_t‖²."""
    energy = math.fsum(x.norm**2 for x in updates) or 1.0
    left = math.fsum(float(x.rmatmul(u.T).square().sum()) for x in updates)
    right = math.fsum(float(x.matmul(v).square().sum()) for x in updates)
    return left / energy, right / energy
