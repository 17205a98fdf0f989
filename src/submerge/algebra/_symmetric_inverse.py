"""The inverse of symmetric positive semidefinite matrices, or the pseudo-inverse where there is none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from submerge.deferred import torch

__all__ = ["SymmetricInverse"]

TINY = 1e-300
"""What stands for the diagonal element of an input that is never there."""


class SymmetricInverse:
    """C⁻¹ of blocks C [k, b, b], by a Cholesky factorisation of C with a unit diagonal; made when first used.

    Scaled to a unit diagonal, channels of very different sizes (an outlier of a language model is 10⁴ times
    as large as its neighbours) do not make C ill-conditioned, and need no jitter.

    Args:
        blocks: returns C in float64, a new one at each call, of which the lower triangles are read. The
            factor takes the memory of it: of a matrix of 11008 inputs 1 GB, and no second one.
    """

    def __init__(self, blocks: Callable[[], torch.Tensor]) -> None:
        self._blocks = blocks

    @property
    def singular(self) -> bool:
        """Whether C has no inverse in float64, so that it is the pseudo-inverse."""
        return self._cholesky is None

    @property
    def least_share(self) -> float:
        """The least of what is inverted, as a share: of an input's squares, or of the largest eigenvalue.

        The first is what the inputs before it do not explain, a pivot of C with a unit diagonal; the second
        holds for the pseudo-inverse, by blocks. 1 where nothing is inverted.
        """
        if self._cholesky is not None:
            return float(self._cholesky[0].diagonal(dim1=1, dim2=2).min()) ** 2
        inverted = self._eigenpairs[0]
        least = torch.where(inverted > 0, inverted, torch.inf).amin(1)
        return float((least / inverted.amax(1)).nan_to_num(1.0, 1.0).min())

    def applied(self, right: torch.Tensor) -> torch.Tensor:
        """Return R C⁻¹ for R [k, r, b], float64."""
        if self._cholesky is None:
            values, vectors = self._eigenpairs
            return ((right @ vectors) * values.unsqueeze(1)) @ vectors.mT
        lower, scale = self._cholesky
        half = torch.linalg.solve_triangular(lower, (right * scale.unsqueeze(1)).mT, upper=False)
        solved: torch.Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True).mT
        return solved * scale.unsqueeze(1)

    @cached_property
    def _cholesky(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """L with L Lᵀ = D C D and the diagonal D [k, b] that makes the diagonal of D C D one; None without L.

        A factorisation of a singular C may end by luck, with pivots that are rounding alone and a solution
        that is noise: so pivots have to be more than rounding. A jitter on the diagonal would take the place
        of one noise by another, 1e-16 of the right-hand side over a jitter of 1e-14.
        """
        lower = self._blocks()
        scale = lower.diagonal(dim1=1, dim2=2).clamp(min=TINY).rsqrt()
        lower.mul_(scale.unsqueeze(1)).mul_(scale.unsqueeze(2))
        info = torch.zeros(len(lower), dtype=torch.int32, device=lower.device)
        # as LAPACK has matrices, by columns, the lower triangle is an upper one: so it works in place
        torch.linalg.cholesky_ex(lower.mT, upper=True, out=(lower.mT, info))
        least = lower.diagonal(dim1=1, dim2=2).min()
        if info.any() or not least**2 > lower.shape[1] * torch.finfo(torch.float64).eps:
            return None
        return lower, scale

    @cached_property
    def _eigenpairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse eigenvalues [k, b] and the vectors [k, b, b]; 0 for eigenvalues that are rounding."""
        blocks = self._blocks()
        values, vectors = torch.linalg.eigh(blocks)
        least = values[:, -1:] * blocks.shape[1] * torch.finfo(torch.float64).eps
        return torch.where(values > least, 1 / values, 0.0), vectors
