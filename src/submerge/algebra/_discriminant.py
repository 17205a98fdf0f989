"""The linear discriminant of groups of vectors, with a covariance that is shrunk towards the isotropic one.

Of T groups with means μ_t and one covariance Σ, at equal priors,

    log p(t | x) = w_t x + b_t − log Σ_u exp(w_u x + b_u),
    w_t = Σ⁻¹ (μ_t − μ),     b_t = −½ (μ_t + μ)ᵀ w_t,     μ the mean of the μ_t

(Fisher 1936, Rao 1948), where μ cancels, and keeps the terms small. A group of several clusters is a mixture
of them (Hastie & Tibshirani 1996), and p(t | x) the sum over its clusters, of which each has a prior within
the group by its size. There are often fewer vectors N than their length n, and then the covariance S of the
residuals R [N, n], each row a vector less its group's mean, has no inverse. So Σ = (1 − γ) S + γ (tr S / n) I
with the share γ of Ledoit & Wolf (2004), which minimises the expected ‖Σ − E S‖² and needs no data beside. At
γ = 1 the nearest mean is the best group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from submerge.algebra._group_statistics import GroupStatistics
from submerge.algebra._pooled_covariance import PooledCovariance
from submerge.deferred import torch

__all__ = ["Discriminant", "discriminant_of", "linear_discriminant"]


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
    wide = [group.detach().double() for group in groups]
    statistics = [GroupStatistics.of(group, group.mean(0, keepdim=True), rank=None) for group in wide]
    return discriminant_of(statistics, shrinkage)


def discriminant_of(
    groups: Sequence[GroupStatistics], shrinkage: float | None = None, *, floor: float = 0.0
) -> Discriminant:
    """Return the discriminant of all means of groups, in their order, computed in float64.

    Where groups have several means, b has the logarithm of each one's share of its group's vectors.

    Args:
        groups: of which all means are of one length.
        shrinkage: γ in (0, 1]; by default that of Ledoit and Wolf.
        floor: the least variance of a direction, as a share of the mean squared distance of two means. It
            bounds the evidence where the vectors of each group are alike, as of questions in a few words.

    Raises:
        ValueError: no group has two vectors that differ, and there is no floor.

    Examples:
        >>> import torch
        >>> from submerge.algebra import GroupStatistics, discriminant_of
        >>> x = torch.tensor([[1.0, 1], [1, -1], [2, 0], [0, 0]])
        >>> groups = [GroupStatistics.of(own, own.mean(0, keepdim=True)) for own in (x, -x)]
        >>> discriminant_of(groups, 0.5).weights[:, 0] > 0
        tensor([ True, False])
    """
    means = torch.cat([group.means.double() for group in groups])
    covariance = PooledCovariance.of(groups, shrinkage, floor=floor)
    centre = means.mean(0)
    weights = covariance.solve(means - centre)
    priors = torch.cat([(sizes := g.sizes.double().clamp(min=1)).log() - sizes.sum().log() for g in groups])
    return Discriminant(weights, -0.5 * (weights * (means + centre)).sum(1) + priors, covariance.shrinkage)
