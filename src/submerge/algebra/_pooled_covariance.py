"""The covariance that groups of vectors have in common, shrunk towards the isotropic one, and its inverse.

    Σ = (1 − γ) S + γ (tr S / n) I + φ I,     S = (FᵀF + ρ/n I) / (N − T)

where F [k, n] has the leading directions of all groups' scatter, one below the other, ρ is the trace of the
rest, and φ is 0 but with a floor. No matrix is inverted but the smaller of [n, n] and [k, k].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from submerge.algebra._group_statistics import GroupStatistics
from submerge.deferred import torch

__all__ = ["PooledCovariance"]

FLOOR = 1e-6
"""The least share of the isotropic covariance that is chosen."""
ROUNDING = 1e-12
"""The variance within groups, beside the means' squares, of vectors that float32's rounding sets apart."""


@dataclass(frozen=True)
class PooledCovariance:
    """S = FᵀF / f + e I, and Σ = a FᵀF + c I.

    Attributes:
        factor: F [k, n] float64.
        freedom: f = N − T, of N vectors and T means.
        rest: e.
        leading: a.
        isotropic: c; 0 where neither vectors nor means differ, and Σ is none.
        shrinkage: γ.
    """

    factor: torch.Tensor
    freedom: int
    rest: float
    leading: float
    isotropic: float
    shrinkage: float

    @classmethod
    def of(
        cls, groups: Sequence[GroupStatistics], shrinkage: float | None, *, floor: float
    ) -> PooledCovariance:
        """Return the covariance of groups; raise `ValueError` where all vectors of each are alike."""
        means = torch.cat([group.means.double() for group in groups])
        factor = torch.cat([group.factor.double() for group in groups])
        total, fourth = (float(sum(group.moments[k] for group in groups)) for k in (0, 1))
        count, width = sum(group.count for group in groups), factor.shape[1]
        freedom = max(1, count - len(means))
        variance = total / freedom / width
        distance = 2 * float((means - means.mean(0)).square().sum()) / max(1, len(means) - 1)
        if not variance > ROUNDING * float(means.square().mean()):
            if not floor:
                raise ValueError("the vectors of each group are all alike")
            return cls(factor[:0], freedom, 0.0, 0.0, floor * distance, 1.0)
        rest = max(0.0, total - float(factor.square().sum())) / width
        gamma = _ledoit_wolf(factor, rest, total, fourth, count) if shrinkage is None else shrinkage
        isotropic = gamma * variance + (1 - gamma) * rest / freedom + max(0.0, floor * distance - variance)
        return cls(factor, freedom, rest / freedom, (1 - gamma) / freedom, isotropic, gamma)

    def solve(self, rows: torch.Tensor) -> torch.Tensor:
        """Return Σ⁻¹ d for rows d [T, n]; zeros where there is no Σ.

        Where k < n by (d − Fᵀ (F Fᵀ + (c/a) I)⁻¹ F d) / c.
        """
        if self.isotropic == 0:
            return torch.zeros_like(rows)
        if self.leading == 0 or not len(self.factor):
            return rows / self.isotropic
        factor, a, c = self.factor, self.leading, self.isotropic
        count, width = factor.shape
        if width <= count:
            matrix = a * factor.T @ factor + c * torch.eye(width).to(rows)
            solved: torch.Tensor = torch.linalg.solve(matrix, rows.T).T
            return solved
        gram = factor @ factor.T + c / a * torch.eye(count).to(rows)
        inside = torch.linalg.solve(gram, factor @ rows.T)  # [k, T]
        inverted: torch.Tensor = (rows - inside.T @ factor) / c
        return inverted

    def variances(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (w_i − w_j)ᵀ S (w_i − w_j) [T, T] for rows w [T, n]."""
        mode = "donot_use_mm_for_euclid_dist"
        inside = rows @ self.factor.T
        own = torch.cdist(inside, inside, compute_mode=mode).square() / self.freedom
        return own + self.rest * torch.cdist(rows, rows, compute_mode=mode).square()

    @property
    def dimensions(self) -> float:
        """The trace of Σ⁻¹ S: in how many directions noise of the means counts."""
        if self.isotropic == 0:
            return 0.0
        factor = self.factor
        count, width = factor.shape
        gram = factor @ factor.T if count < width else factor.T @ factor
        values = torch.linalg.eigvalsh(gram).clamp(min=0) if count else factor.new_zeros(0)
        leading = (values / self.freedom + self.rest) / (self.leading * values + self.isotropic)
        return float(leading.sum()) + (width - len(values)) * self.rest / self.isotropic


def _ledoit_wolf(factor: torch.Tensor, rest: float, total: float, fourth: float, count: int) -> float:
    """Return γ = min(β, δ) / δ with δ = ‖S − m I‖² and β = Σ_i ‖r_i r_iᵀ − S‖² / N², where m = tr S / n.

    Here S is FᵀF + ρ/n I, divided by N. γ is not below `FLOOR`, for residuals of one length along one line
    have β = 0, and S has no inverse; where δ is 0, too, S is isotropic, and γ is 1.
    """
    k, width = factor.shape
    products = factor @ factor.T if k < width else factor.T @ factor
    squares = float(products.square().sum()) + 2 * rest * float(factor.square().sum()) + rest**2 * width
    norm = squares / count**2  # ‖S‖²
    delta = norm - (total / count) ** 2 / width
    beta = (fourth / count - norm) / count
    return min(1.0, max(FLOOR, beta / delta)) if delta > 0 else 1.0
