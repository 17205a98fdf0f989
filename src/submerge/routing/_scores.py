"""How well each task explains an activation: residuals of its subspace, and other scores of its update.

Update t of a linear map is Δ_t ≈ U_t diag(s_t) V_t, and z [n] an input of the map. What is returned is
smaller the better the task fits.

    residual          r_t = ‖z − V_tᵀ V_t z‖ = (‖z‖² − ‖V_t z‖²)^(1/2), without the reconstruction
    whitened          the same of P^(−1/2) z and of the span of P^(−1/2) V_tᵀ, where P = (I + mean_t C_t) / 2
    gaussian          −log N(z; 0, (C_t + I) / 2), z at length √n, up to what all tasks have in common
    trailing energy   ‖V_t^lo z‖ / ‖V_t z‖ · (r / r_lo)^(1/2), where V_t^lo are the last half of V_t's r rows
    null space        mean over tokens x of ω_t(x) − (1 − r/n)^(1/2), ω_t(x) = (1 − ‖V_t x‖² / ‖x‖²)^(1/2)

with C_t = n Δ_tᵀΔ_t / ‖Δ_t‖². Other norms of the residual: `l1`; and `mahalanobis`, which the authors compute
with the covariance of V_t's rows plus 10⁻³ I. The residual is orthogonal to those rows, so that it is l2
times 10^(3/2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from submerge.algebra import GRAM_FLOOR, inverse_root
from submerge.methods.mass import Pooling, Score
from submerge.routing._updates import InputFactors

__all__ = ["SiteScore", "TokenPooling", "site_score"]

EPSILON = 1e-3
SHRINK = 0.5
"""The share of the identity in a covariance that is told from an update."""


class TokenPooling:
    """Pools the tokens of each sample: their mean, the first of them, or none of it.

    `mask` [B, L] says which tokens there are; without it all count.
    """

    def __init__(self, pooling: Pooling, size: int, mask: torch.Tensor | None) -> None:
        self.pooling, self.size, self.mask = pooling, size, mask

    def of_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return one vector of each sample [B, n] in float32: the mean where all tokens are looked at."""
        alone = TokenPooling(Pooling.MEAN, self.size, self.mask) if self.pooling is Pooling.TOKENS else self
        return alone(x)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, n], or the tokens [B, L, n], with zeros where there is none, in float32."""
        x = x.detach().float().reshape(self.size, -1, x.shape[-1])
        if self.pooling is Pooling.CLS:
            return x[:, 0]
        if self.mask is None or self.mask.shape[1] != x.shape[1]:
            return x.mean(1) if self.pooling is Pooling.MEAN else x
        weights = self.mask.to(x).unsqueeze(-1)
        count = weights.sum(1).clamp(min=1)
        if self.pooling is Pooling.MEAN:
            return (weights.transpose(1, 2) @ x).squeeze(1) / count
        # scores average over all L places: so the tokens' squares have to be L / count times as large
        return x * weights * (x.shape[1] / count.unsqueeze(1)).sqrt()


class SiteScore(ABC):
    """The score of each task at the inputs of one linear map, from the tasks' factors alone.

    `basis` [R, n] are the tasks' right factors V_t one below the other, and `places` where each task's are.
    """

    def __init__(self, basis: torch.Tensor, places: list[slice]) -> None:
        self.basis, self.places = basis.float(), places

    @abstractmethod
    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Return scores [B, T] of pooled inputs [B, n], or of tokens [B, L, n] with zeros in the gaps."""

    def read(self, z: torch.Tensor) -> torch.Tensor:
        """Return what the factors read of inputs, V z, [.., R]."""
        return z @ self.basis.to(z.device).T


class Residual(SiteScore):
    """Norms of what the tasks' subspaces leave of an input; the rows of `basis` are orthonormal by task.

    `whitening` [n, n], if there is one, is applied to inputs before.
    """

    def __init__(
        self, basis: torch.Tensor, places: list[slice], norm: str, whitening: torch.Tensor | None = None
    ) -> None:
        super().__init__(basis, places)
        self.norm, self.whitening = norm, whitening

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        if self.whitening is not None:
            z = z @ self.whitening.to(z)
        if self.norm == "l1":
            return self._l1(z)
        squares = self.read(z).double().square()
        inside = torch.stack([squares[..., at].sum(-1) for at in self.places], dim=-1)
        rest = (z.double().square().sum(-1, keepdim=True) - inside).clamp_(min=0)  # small beside ‖z‖²
        residual = (rest.mean(1) if z.ndim == 3 else rest).sqrt()
        return residual / math.sqrt(EPSILON) if self.norm == "mahalanobis" else residual

    def _l1(self, z: torch.Tensor) -> torch.Tensor:
        inner, basis = self.read(z), self.basis.to(z.device)
        parts = [(z - inner[..., at] @ basis[at]).abs().sum(-1) for at in self.places]
        residual = torch.stack(parts, dim=-1).double()
        return residual.mean(1) if z.ndim == 3 else residual


class Gaussian(SiteScore):
    """Minus the log-density of z under each task's covariance, from the factors alone.

    With C_t = a V_tᵀ diag(s_t²) V_t the covariance is ½ + ½ a s² along V_t's rows, and ½ elsewhere.
    """

    def __init__(self, basis: torch.Tensor, places: list[slice], values: torch.Tensor) -> None:
        super().__init__(basis, places)
        self.gains: list[torch.Tensor] = []
        self.logs: list[float] = []
        for at in places:
            squares = values[at].double().cpu().square()
            share = squares * (basis.shape[1] / float(squares.sum())) if len(squares) else squares
            levels = SHRINK + (1 - SHRINK) * share
            self.gains.append(1 / SHRINK - 1 / levels)
            self.logs.append(float((levels / SHRINK).log().sum()))

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        n = z.shape[-1]
        length = z.double().square().sum(-1, keepdim=True)
        if z.ndim == 3:
            length = length.mean(1, keepdim=True)
        squares = self.read(z).double().square() * (n / length.clamp(min=1e-30))
        scores = [
            (n / SHRINK - squares[..., at] @ gain.to(squares) + log) / 2
            for at, gain, log in zip(self.places, self.gains, self.logs, strict=True)
        ]
        stacked = torch.stack(scores, dim=-1)
        return stacked.mean(1) if z.ndim == 3 else stacked


class TrailingEnergy(SiteScore):
    """How much of what each update reads of z is read by the trailing half of its singular directions."""

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        squares = self.read(z).double().square()
        if z.ndim == 3:
            squares = squares.mean(1)
        return torch.stack([self._share(squares[:, at]) for at in self.places], dim=-1)

    @staticmethod
    def _share(squares: torch.Tensor) -> torch.Tensor:
        """Return the root of the trailing half's share [B] of squares [B, r]; 1 on average at random."""
        rank = squares.shape[1]
        trailing, total = rank // 2, squares.sum(1)
        if not trailing:
            return torch.ones_like(total)
        share = squares[:, rank - trailing :].sum(1) / total.clamp(min=1e-30) * (rank / trailing)
        return torch.where(total > 0, share, 1).sqrt()


class NullSpaceScore(SiteScore):
    """The null-space ratio ω_t of each task, as a mean over tokens, less the ratio of noise.

    The right singular vectors of an adapter's update B A span the row space of A, where B has full rank and
    the bank all triplets; then ω_t is what `null_space_ratio` measures (arXiv 2603.26317). Of an update that
    was cut to r triplets it is the ratio of what the bank holds, which is no smaller. The level (1 − r/n)^½
    of inputs without structure lets ranks be compared; a task that does not change the map is at it, 0.
    """

    def __init__(self, basis: torch.Tensor, places: list[slice]) -> None:
        super().__init__(basis, places)
        ranks = torch.tensor([at.stop - at.start for at in places], dtype=torch.float64)
        self.levels = (1 - ranks / basis.shape[1]).sqrt()  # [T]

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        tokens = z if z.ndim == 3 else z.unsqueeze(1)
        lengths = tokens.double().square().sum(-1, keepdim=True)  # [B, L, 1]
        there = lengths > 0  # gaps have no ratio, and do not count
        squares = self.read(tokens).double().square()
        seen = torch.stack([squares[..., at].sum(-1) for at in self.places], dim=-1)  # [B, L, T]
        ratios = (1 - seen / lengths.where(there, 1)).clamp(0, 1).sqrt()
        apart = (ratios - self.levels.to(ratios)) * there
        return apart.sum(1) / there.sum(1).clamp(min=1)


def site_score(weight: InputFactors, count: int, score: Score, norm: str) -> SiteScore:
    """Return the score of `count` tasks at the input of a linear map; `norm` is that of residuals."""
    places = [weight.places.get(t, slice(0, 0)) for t in range(count)]
    if score is Score.GAUSSIAN:
        return Gaussian(weight.down, places, weight.values)
    if score is Score.TRAILING_ENERGY:
        return TrailingEnergy(weight.down, places)
    if score is Score.NULL_SPACE:
        return NullSpaceScore(weight.down, places)
    if score is Score.WHITENED:
        basis, whitening = _whitened(weight, count)
        return Residual(basis, places, norm, whitening)
    return Residual(weight.down, places, norm)


def _whitened(weight: InputFactors, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bases of the tasks' whitened subspaces, one below the other, and P^(−1/2)."""
    n = weight.down.shape[1]
    down = weight.down.double().cpu()
    values = weight.values.double().cpu()
    moment = torch.zeros(n, n, dtype=torch.float64)
    for at in weight.places.values():
        part = down[at] * values[at].unsqueeze(1)
        moment += part.T @ part * (n / float(values[at].square().sum()) / count)
    levels, vectors = torch.linalg.eigh(SHRINK * torch.eye(n, dtype=torch.float64) + (1 - SHRINK) * moment)
    whitening = (vectors / levels.sqrt()) @ vectors.T
    bases = []
    for at in weight.places.values():
        spanned = down[at] @ whitening
        bases.append(inverse_root(spanned @ spanned.T, GRAM_FLOOR) @ spanned)
    return torch.cat(bases).float(), whitening.float()
