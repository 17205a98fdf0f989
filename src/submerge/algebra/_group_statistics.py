"""What a discriminant needs to know of one group's vectors: means, and the scatter about them.

With r_i a vector less the nearest mean of its group, these are the numbers of vectors of each mean, and

    S = Σ r_i r_iᵀ,     Σ ‖r_i‖²,     Σ ‖r_i‖⁴

the last of which says how exact S is. They are sums within the group, so that groups are joined, and left out
again, without an error. Of S the leading eigenpairs are kept as a factor F [k, n] with FᵀF ≈ S: few vectors
have no more, and of many the rest, of which the trace is known, counts as isotropic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from submerge.deferred import torch

__all__ = ["GroupStatistics"]

RANK = 64
"""Directions of a group's scatter that are kept: of six image tasks more find no more of the images."""
ROUNDING = 1e-12
"""The eigenvalues of a scatter, by the largest, that are none but for rounding."""
SIZES, FACTOR, MOMENTS = "sizes", "factor", "moments"


@dataclass(frozen=True)
class GroupStatistics:
    """The statistics of a group's N vectors of n numbers.

    Attributes:
        means: [m, n], one, or those of clusters.
        sizes: [m], the vectors that are nearest to each mean.
        factor: [k, n] float32, F with FᵀF ≈ S.
        moments: [2] float64, Σ ‖r‖² and Σ ‖r‖⁴.

    Examples:
        >>> import torch
        >>> from submerge.algebra import GroupStatistics
        >>> own = GroupStatistics.of(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[2.0, 2.0]]))
        >>> own.sizes.tolist(), own.factor.abs().tolist(), own.moments.tolist()
        ([2], [[1.4142135381698608, 0.0]], [2.0, 2.0])
    """

    means: torch.Tensor
    sizes: torch.Tensor
    factor: torch.Tensor
    moments: torch.Tensor

    @classmethod
    def of(cls, vectors: torch.Tensor, means: torch.Tensor, rank: int | None = RANK) -> GroupStatistics:
        """Return the statistics of vectors [N, n] about means [m, n].

        `rank` is the most directions of the scatter; None keeps the residuals themselves for F, in float64.
        """
        wide, centres = vectors.detach().double(), means.detach().double()
        nearest = (
            torch.cdist(wide, centres).argmin(1) if len(centres) > 1 else wide.new_zeros(len(wide)).long()
        )
        residuals = wide - centres[nearest]
        squares = residuals.square().sum(1)
        factor = residuals if rank is None else _leading_factor(residuals, rank).float()
        moments = torch.stack([squares.sum(), squares.square().sum()])
        return cls(means, nearest.bincount(minlength=len(means)), factor, moments)

    @classmethod
    def from_tensors(
        cls, means: torch.Tensor, tensors: Mapping[str, torch.Tensor], prefix: str
    ) -> GroupStatistics | None:
        """Return what `tensors` named, for these means; None where some are missing, or do not fit them."""
        own = [tensors.get(f"{prefix}.{part}") for part in (SIZES, FACTOR, MOMENTS)]
        sizes, factor, moments = own
        if sizes is None or factor is None or moments is None:
            return None
        shapes = (tuple(sizes.shape), tuple(factor.shape[1:]), tuple(moments.shape))
        return (
            cls(means, sizes, factor, moments) if shapes == ((len(means),), means.shape[1:], (2,)) else None
        )

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return all but the means, by names for a file."""
        own = {SIZES: self.sizes, FACTOR: self.factor, MOMENTS: self.moments}
        return {f"{prefix}.{part}": tensor for part, tensor in own.items()}

    @property
    def count(self) -> int:
        """The number N of vectors."""
        return int(self.sizes.sum())

    @property
    def nbytes(self) -> int:
        """The bytes of what is kept beside the means."""
        return sum(tensor.nbytes for tensor in self.tensors("").values())


def _leading_factor(residuals: torch.Tensor, rank: int) -> torch.Tensor:
    """Return F [k, n], k ≤ rank, where FᵀF has the leading eigenpairs of RᵀR, by the smaller Gram matrix."""
    count, width = residuals.shape
    if count > width:
        values, vectors = torch.linalg.eigh(residuals.T @ residuals)
        factor = (vectors * values.clamp(min=0).sqrt()).T
    else:
        values, vectors = torch.linalg.eigh(residuals @ residuals.T)
        factor = vectors.T @ residuals
    leading: torch.Tensor = factor[values > ROUNDING * values[-1]][-rank:].flip(0)
    return leading
