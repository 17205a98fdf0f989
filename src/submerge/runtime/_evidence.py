"""How well each task explains an activation: residuals of its subspace, and other scores of its update.

Update t of a linear map is Δ_t ≈ U_t diag(s_t) V_t, and z [n] an input of the map. What is returned is
smaller the better the task fits.

    residual   r_t = ‖z − V_tᵀ V_t z‖ = (‖z‖² − ‖V_t z‖²)^(1/2), without the reconstruction
    whitened   the same of P^(−1/2) z and of the span of P^(−1/2) V_tᵀ, where P = (I + mean_t C_t) / 2
    gaussian   −log N(z; 0, (C_t + I) / 2), z at length √n, up to what all tasks have in common
    leading    ‖V_t^lo z‖ / ‖V_t z‖ · (r / r_lo)^(1/2), where V_t^lo are the lesser half of V_t's r rows

with C_t = n Δ_tᵀΔ_t / ‖Δ_t‖². Other norms of the residual: `l1`; and `mahalanobis`, which the authors compute
with the covariance of V_t's rows plus 10⁻³ I. The residual is orthogonal to those rows, so that it is l2
times 10^(3/2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from submerge.algebra import GRAM_FLOOR, Dense, inverse_root
from submerge.runtime._layers import Factors

__all__ = ["Evidence", "Pool", "evidence"]

Evidence = Callable[[torch.Tensor], torch.Tensor]
"""Maps pooled inputs [B, n], or tokens [B, L, n] with zeros where there is none, to [B, T]."""
EPSILON = 1e-3
SHRINK = 0.5
"""The share of the identity in a covariance that is told from an update."""


class Pool:
    """Pools the tokens of each sample: their mean, the first of them, or none of it ("tokens").

    `mask` [B, L] says which tokens there are; without it all count.
    """

    def __init__(self, how: str, size: int, mask: torch.Tensor | None) -> None:
        self.how, self.size, self.mask = how, size, mask

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().float().reshape(self.size, -1, x.shape[-1])
        if self.how == "cls":
            return x[:, 0]
        mask = self.mask
        if mask is not None and mask.shape[1] == x.shape[1]:
            weights = mask.to(x).unsqueeze(-1)
            count = weights.sum(1).clamp(min=1)
            if self.how == "mean":
                return (weights.transpose(1, 2) @ x).squeeze(1) / count
            return (
                x * weights * (x.shape[1] / count.unsqueeze(1)).sqrt()
            )  # a mean over L is one over the count
        return x.mean(1) if self.how == "mean" else x


def evidence(weight: Factors, count: int, score: str, norm: str) -> Evidence:
    """Return the evidence for each of `count` tasks at the input of a linear map."""
    if score == "gaussian":
        return _Gaussian(weight, count)
    if score == "leading":
        return _Leading(weight, count)
    if score == "whitened":
        return _Residual(*_whitened(weight, count), norm)
    places = [weight.places.get(t, slice(0, 0)) for t in range(count)]
    return _Residual(weight.down.float(), places, None, norm)


class _Residual:
    """Residuals of the subspaces that are spanned by rows of `basis` [R, n], orthonormal for each task."""

    def __init__(
        self, basis: torch.Tensor, places: list[slice], turn: torch.Tensor | None, norm: str
    ) -> None:
        self.basis, self.places, self.turn, self.norm = basis, places, turn, norm

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        basis = self.basis.to(z.device)
        if self.turn is not None:
            z = z @ self.turn.to(z)
        inner = z @ basis.T
        if self.norm == "l1":
            parts = [(z - inner[..., at] @ basis[at]).abs().sum(-1) for at in self.places]
            found = torch.stack(parts, dim=-1).double()
            return found.mean(1) if z.ndim == 3 else found
        squares = inner.double().square()
        inside = torch.stack([squares[..., at].sum(-1) for at in self.places], dim=-1)
        rest = (z.double().square().sum(-1, keepdim=True) - inside).clamp_(min=0)  # small beside ‖z‖²
        found = (rest.mean(1) if z.ndim == 3 else rest).sqrt()
        return found / math.sqrt(EPSILON) if self.norm == "mahalanobis" else found


def _whitened(weight: Factors, count: int) -> tuple[torch.Tensor, list[slice], torch.Tensor]:
    """Return the whitened subspaces' bases and places, and P^(−1/2)."""
    n = weight.down.shape[1]
    down = weight.down.double().cpu()
    values = weight.values.double().cpu()
    scaled = torch.zeros(n, n, dtype=torch.float64)
    for at in weight.places.values():
        part = down[at] * values[at].unsqueeze(1)
        scaled += part.T @ part * (n / float(values[at].square().sum()) / count)
    mixed = SHRINK * torch.eye(n, dtype=torch.float64) + (1 - SHRINK) * scaled
    levels, vectors = torch.linalg.eigh(mixed)
    turn = (vectors / levels.sqrt()) @ vectors.T
    bases = []
    for at in weight.places.values():
        spanned = down[at] @ turn
        bases.append(inverse_root(Dense(spanned).row_gram(), GRAM_FLOOR) @ spanned)
    places = [weight.places.get(t, slice(0, 0)) for t in range(count)]
    return torch.cat(bases).float(), places, turn.float()


class _Gaussian:
    """Minus the log-density of z under each task's covariance, from the factors alone.

    With C_t = a V_tᵀ diag(s_t²) V_t the covariance is ½ + ½ a s² along V_t's rows, and ½ elsewhere.
    """

    def __init__(self, weight: Factors, count: int) -> None:
        self.basis = weight.down.float()
        self.n = self.basis.shape[1]
        self.places = [weight.places.get(t, slice(0, 0)) for t in range(count)]
        self.gains: list[torch.Tensor] = []
        self.logs: list[float] = []
        for at in self.places:
            squares = weight.values[at].double().cpu().square()
            share = squares * (self.n / float(squares.sum())) if len(squares) else squares
            levels = SHRINK + (1 - SHRINK) * share
            self.gains.append(1 / SHRINK - 1 / levels)
            self.logs.append(float((levels / SHRINK).log().sum()))

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        length = z.double().square().sum(-1, keepdim=True)
        if z.ndim == 3:
            length = length.mean(1, keepdim=True)
        inner = (z @ self.basis.to(z.device).T).double().square() * (self.n / length.clamp(min=1e-30))
        whole = self.n / SHRINK
        found = [
            (whole - inner[..., at] @ gain.to(inner) + log) / 2
            for at, gain, log in zip(self.places, self.gains, self.logs, strict=True)
        ]
        stacked = torch.stack(found, dim=-1)
        return stacked.mean(1) if z.ndim == 3 else stacked


class _Leading:
    """How much of what each update reads of z is read by the lesser half of its directions."""

    def __init__(self, weight: Factors, count: int) -> None:
        self.basis = weight.down.float()
        self.places = [weight.places.get(t, slice(0, 0)) for t in range(count)]

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        squares = (z @ self.basis.to(z.device).T).double().square()
        if z.ndim == 3:
            squares = squares.mean(1)
        found = []
        for at in self.places:
            own = squares[:, at]
            rank, lesser = own.shape[1], own.shape[1] // 2
            whole = own.sum(1)
            share = own[:, rank - lesser :].sum(1) / whole.clamp(min=1e-30) * (rank / max(1, lesser))
            found.append(torch.where(whole > 0, share, 1).sqrt() if lesser else torch.ones_like(whole))
        return torch.stack(found, dim=-1)
