"""How much two groups of vectors overlap, as a linear discriminant sees them.

If the vectors of two groups are Gaussian with means μ_i, μ_j and one covariance S, what a discriminant with Σ
says of one against the other, (Σ⁻¹ (μ_i − μ_j))ᵀ x, has the means ± δ/2 and the variance s², and

    overlap = 2 Φ(−δ / 2s),     δ = (μ_i − μ_j)ᵀ Σ⁻¹ (μ_i − μ_j),     s² = (μ_i − μ_j)ᵀ Σ⁻¹ S Σ⁻¹ (μ_i − μ_j)

is the overlapping coefficient of the two densities: 1 where nothing tells them apart, and twice the share
that is taken for the other's. Means of N_i and N_j vectors differ by chance, too, which adds
tr(Σ⁻¹S) (1/N_i + 1/N_j) to δ, and is taken away. No vector is needed, but for the statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from submerge.algebra._discriminant import discriminant_of
from submerge.algebra._group_statistics import GroupStatistics
from submerge.algebra._pooled_covariance import PooledCovariance
from submerge.deferred import torch

__all__ = ["Separation"]

ROUNDING = 1e-9
"""Of δ, beside what it is the difference of: nothing that tells means apart."""


@dataclass(frozen=True)
class Separation:
    """δ and s² [M, M] of all means of all groups, and of which group each mean is.

    Those of two kinds of vectors, as of an image and its question, add, where these are independent.

    Examples:
        >>> import torch
        >>> from submerge.algebra import GroupStatistics, Separation
        >>> x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
        >>> groups = [GroupStatistics.of(x + shift, x[:1] * 0 + shift) for shift in (0, 0, 9)]
        >>> Separation.of(groups).overlaps()[0].round(decimals=3)
        tensor([1., 1., 0.], dtype=torch.float64)
    """

    distances: torch.Tensor
    variances: torch.Tensor
    sizes: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, groups: Sequence[GroupStatistics], *, floor: float = 0.0) -> Separation:
        """Return what tells groups apart; `floor` and errors are those of `discriminant_of`."""
        covariance = PooledCovariance.of(groups, None, floor=floor)
        weights = discriminant_of(groups, floor=floor).weights
        means = torch.cat([group.means.double() for group in groups])
        inner = weights @ (means - means.mean(0)).T
        own = inner.diagonal()
        distances = own[:, None] + own - inner - inner.T
        counts = torch.cat([group.sizes.double().clamp(min=1) for group in groups])
        chance = covariance.dimensions * (1 / counts[:, None] + 1 / counts)
        distances = (distances - chance).masked_fill(distances <= ROUNDING * (own[:, None] + own), 0.0)
        sizes = tuple(group.sizes.double() for group in groups)
        return cls(distances.clamp(min=0), covariance.variances(weights), sizes)

    def __add__(self, other: Separation) -> Separation:
        if self.distances.shape == other.distances.shape:
            return Separation(self.distances + other.distances, self.variances + other.variances, self.sizes)
        narrow, wide = sorted((self, other), key=lambda one: len(one.distances))
        return wide + narrow._repeated([len(sizes) for sizes in wide.sizes])

    def _repeated(self, counts: Sequence[int]) -> Separation:
        """Return the same of groups of one mean each, as if each had so many that are alike."""
        index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        return Separation(self.distances[index][:, index], self.variances[index][:, index], self.sizes)

    def overlaps(self) -> torch.Tensor:
        """Return the overlap [T, T] of each group's vectors with another group, the nearest mean of it."""
        ratio = self.distances / (2 * self.variances.sqrt())
        each = torch.erfc(torch.where(self.distances > 0, ratio, 0.0) / 2**0.5)
        lengths = [len(sizes) for sizes in self.sizes]
        nearest = torch.stack([part.amax(1) for part in torch.split(each, lengths, dim=1)], dim=1)  # [M, T]
        shares = [sizes / sizes.sum() for sizes in self.sizes]
        parts = zip(torch.split(nearest, lengths), shares, strict=True)
        return torch.stack([(part * share.unsqueeze(1)).sum(0) for part, share in parts])
