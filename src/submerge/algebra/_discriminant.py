"""The linear discriminant of groups of vectors, with a covariance that is shrunk towards the isotropic one.

Of T groups with means μ_t and one covariance Σ, at equal priors,

    log p(t | x) = w_t x + b_t − log Σ_u exp(w_u x + b_u),
    w_t = Σ⁻¹ (μ_t − μ),     b_t = −½ (μ_t + μ)ᵀ w_t,     μ the mean of the μ_t

(Fisher 1936, Rao 1948), where μ cancels, and keeps the terms small. There are often fewer vectors N than
their length n, and then the covariance S of the residuals R [N, n], each row a vector less its group's mean,
has no inverse. So Σ = (1 − γ) S + γ (tr S / n) I
with the share γ of Ledoit & Wolf (2004), which minimises the expected ‖Σ − E S‖² and needs no data beside. At
γ = 1 the nearest mean is the best group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from submerge.deferred import torch

__all__ = ["Discriminant", "linear_discriminant"]

FLOOR = 1e-6
"""The least share of the isotropic covariance that is chosen."""
ROUNDING = 1e-12
"""The variance within groups, beside the means' squares, of vectors that float32's rounding sets apart."""


@dataclass(frozen=True)
class Discriminant:
    """w [T, n] and b [T], float64, and the share γ of the isotropic covariance.

    Examples:
        >>> import torch
        >>> from submerge.algebra import linear_discriminant
        >>> groups = [torch.tensor([[1.0, 0], [3, 0]]), torch.tensor([[-1.0, 0], [-3, 0]])]
        >>> fitted = linear_discriminant(groups)
        >>> fitted.log_posteriors(torch.tensor([[2.0, 7]])).argmax(-1)
        tensor([0])
    """

    weights: torch.Tensor
    offsets: torch.Tensor
    shrinkage: float

    def log_posteriors(self, x: torch.Tensor) -> torch.Tensor:
        """Return log p(t | x) [..., T] of vectors [..., n], float64."""
        scores: torch.Tensor = x.double() @ self.weights.to(x.device).T + self.offsets.to(x.device)
        return scores.log_softmax(-1)


def linear_discriminant(groups: Sequence[torch.Tensor], shrinkage: float | None = None) -> Discriminant:
    """Return the discriminant of groups [N_t, n], computed in float64.

    The inverse is that of the smaller of the matrices [n, n] and [N, N].

    Args:
        groups: at least one vector each, and more vectors than groups.
        shrinkage: γ in (0, 1]; by default that of Ledoit and Wolf.

    Raises:
        ValueError: no group has two vectors that differ, so that there is no covariance.

    Examples:
        >>> import torch
        >>> from submerge.algebra import linear_discriminant
        >>> groups = [torch.tensor([[1.0, 1], [1, -1]]), torch.tensor([[-1.0, 1], [-1, -1]])]
        >>> linear_discriminant(groups, 0.5).weights[:, 0]  # Σ = diag(0.5, 1.5)
        tensor([ 2., -2.], dtype=torch.float64)
    """
    groups = [group.detach().double() for group in groups]
    means = torch.stack([group.mean(0) for group in groups])  # [T, n]
    residuals = torch.cat([group - mean for group, mean in zip(groups, means, strict=True)])
    count, width = residuals.shape
    freedom = max(1, count - len(groups))
    variance = float(residuals.square().sum()) / freedom / width
    if not variance > ROUNDING * float(means.square().mean()):
        raise ValueError("the vectors of each group are all alike")
    gamma = _ledoit_wolf(residuals) if shrinkage is None else shrinkage
    centre = means.mean(0)
    weights = _solved(residuals, (1 - gamma) / freedom, gamma * variance, means - centre)
    return Discriminant(weights, -0.5 * (weights * (means + centre)).sum(1), gamma)


def _ledoit_wolf(residuals: torch.Tensor) -> float:
    """Return γ = min(β, δ) / δ with δ = ‖S − m I‖² and β = Σ_i ‖r_i r_iᵀ − S‖² / N², where m = tr S / n.

    It is not below `FLOOR`, for residuals of one length along one line have β = 0, and S has no inverse;
    where δ is 0, too, S is isotropic, and γ is 1.
    """
    count, width = residuals.shape
    squares = residuals.square().sum(1)  # [N]
    products = residuals @ residuals.T if count < width else residuals.T @ residuals
    norm = float(products.square().sum()) / count**2  # ‖S‖²
    delta = norm - (float(squares.sum()) / count) ** 2 / width
    beta = (float(squares.square().sum()) / count - norm) / count
    return min(1.0, max(FLOOR, beta / delta)) if delta > 0 else 1.0


def _solved(residuals: torch.Tensor, a: float, c: float, rows: torch.Tensor) -> torch.Tensor:
    """Return (a RᵀR + c I)⁻¹ d for rows d [T, n], where N < n by (d − Rᵀ (R Rᵀ + (c/a) I)⁻¹ R d) / c."""
    count, width = residuals.shape
    if a == 0:
        return rows / c
    if width <= count:
        matrix = a * residuals.T @ residuals + c * torch.eye(width).to(rows)
        solved: torch.Tensor = torch.linalg.solve(matrix, rows.T).T
        return solved
    gram = residuals @ residuals.T + c / a * torch.eye(count).to(rows)
    inside = torch.linalg.solve(gram, residuals @ rows.T)  # [N, T]
    inverted: torch.Tensor = (rows - inside.T @ residuals) / c
    return inverted
