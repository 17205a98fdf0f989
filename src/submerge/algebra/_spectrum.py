"""Singular values and vectors of updates, polar factors, and numerical rank.

Small matrices are decomposed in float64. A tall or wide dense matrix is decomposed through the Gram
matrix of its short side, accumulated in float64: singular values above 1e-7 of the largest, which is
all that float32 data hold, come out to float32 accuracy at a fraction of the cost of a full SVD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from submerge.algebra._update import Dense, LowRank, Streamed, Update, Zero
from submerge.deferred import torch

__all__ = ["GRAM_FLOOR", "Svd", "enough", "inverse_root", "polar", "rooted", "svd", "tolerance"]

DIRECT = 256
"""The short side up to which a matrix is decomposed directly, in float64."""
SAME = 1e-6
"""The share by which squares of float32 singular values may differ that should be equal."""
GRAM_FLOOR = 1e-7
"""The share of the largest singular value below which the Gram matrix of X shows rounding alone.

XᵀX has the squares of X's singular values, which float64 holds to about 2⁻⁵² of the largest square, and so
the values to √2⁻⁵² = 1.5e-8 of the largest; the rest is a margin for sums of some thousand terms. Float32
data lose nothing by it: their own rounding is 6e-8."""


@dataclass(frozen=True)
class Svd:
    """Δ ≈ u diag(s) vᵀ: u [m, k] and v [n, k] with orthonormal columns, s [k] positive, descending.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, svd
        >>> triplets = svd(Dense(torch.diag(torch.tensor([1.0, 3.0]))))
        >>> triplets.cut(1).update().dense().diag().abs().round(decimals=4)
        tensor([0., 3.])
    """

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor

    def cut(self, k: int) -> Svd:
        """Return the leading k triplets."""
        return Svd(self.u[:, :k], self.s[:k], self.v[:, :k])

    def update(self) -> Update:
        """Return u diag(s) vᵀ with the singular values shared equally by the factors."""
        root = self.s.sqrt()
        return LowRank(self.u * root, (self.v * root).T)


def tolerance(shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Return the share of the largest singular value below which one is rounding: √max(m, n) · eps.

    Independent roundings of the entries add up to a matrix of about eps · s_1; the root is a margin. The
    usual max(m, n) · eps is the worst case, and would drop a thousandth of s_1 that fine-tunes do hold.

    Examples:
        >>> import torch
        >>> from submerge.algebra import tolerance
        >>> tolerance((4096, 1024), torch.float32) == 64 * 2**-23
        True
    """
    return math.sqrt(max(shape)) * torch.finfo(dtype).eps


def svd(update: Update, k: int | None = None) -> Svd:
    """Return the leading k singular triplets of an update (all of its numerical rank by default).

    Low-rank: QR of both factors, then the SVD of the r×r core in float64, O((m + n) r²). Dense: directly
    in float64 where the short side is small, else by the eigenvectors of the short side's Gram matrix.
    Triplets with s ≤ √max(m, n) · eps · s_1 are rounding and are left out; float32 comes back for float32.

    Examples:
        >>> import torch
        >>> from submerge.algebra import LowRank, svd
        >>> triplets = svd(LowRank(torch.ones(4, 1), torch.ones(1, 9)))
        >>> triplets.u.shape, triplets.s.round(decimals=4), triplets.v.shape
        (torch.Size([4, 1]), tensor([6.]), torch.Size([9, 1]))
    """
    if isinstance(update, Zero):
        m, n = update.shape
        return Svd(torch.zeros(m, 0), torch.zeros(0), torch.zeros(n, 0))
    if isinstance(update, LowRank):
        dtype = update.left.dtype
        u, s, v = _by_factors(update)
    else:
        assert isinstance(update, (Dense, Streamed))
        dtype = update.dtype
        # squares would cost float64 data half of their digits; those of float32 have room in float64
        small = min(update.shape) <= DIRECT or dtype == torch.float64
        u, s, v = _direct(update.dense().double()) if small else _by_gram(update)
    rank = _rank(s, tolerance(update.shape, dtype))
    return Svd(u.to(dtype), s.to(dtype), v.to(dtype)).cut(rank if k is None else min(k, rank))


def _direct(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh.T


def _by_factors(update: LowRank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the SVD of L R from that of the r×r core A Bᵀ, for L = Q A and Rᵀ = Z B."""
    q, a = torch.linalg.qr(update.left.double())
    z, b = torch.linalg.qr(update.right.double().T)
    u, s, v = _direct(a @ b.T)
    return q @ u, s, z @ v


def _by_gram(update: Dense | Streamed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the SVD from the eigenvectors of the short side; those of the long side are Δ v / s or Δᵀ u / s.

    They are orthonormal as far as the short side's are exact: what is not above the tolerance, whose division
    by s would blow up its rounding, is left out first.
    """
    tall = update.shape[0] >= update.shape[1]
    gram = update.column_gram() if tall else update.row_gram()
    s, vectors = rooted(gram, tolerance(update.shape, update.dtype))
    if tall:
        return update.matmul(vectors) / s, s, vectors
    return vectors, s, update.rmatmul(vectors.T).T / s


def _rank(s: torch.Tensor, share: float) -> int:
    """Return how many of the descending values are above `share` of the first."""
    return int((s > share * s[:1]).sum()) if s.numel() else 0


def enough(squares: torch.Tensor, share: float) -> int:
    """Return how many of the descending squares hold this share of their sum to rounding; at least one.

    What is left out is compared with what may be: so all are held for a share of 1, and squares that should
    be equal are taken for equal.

    Examples:
        >>> import torch
        >>> from submerge.algebra import enough
        >>> squares = torch.tensor([9.0, 0.9, 0.1])
        >>> enough(squares, share=0.9), enough(squares, share=0.99)
        (1, 2)
    """
    left_out = squares.double().flip(0).cumsum(0).flip(0)
    count = int((left_out > (1 - share) * (1 + SAME) * left_out[:1]).sum())
    return max(count, min(1, len(squares)))


def rooted(gram: torch.Tensor, share: float, k: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the singular values of X and its right singular vectors from XᵀX, descending, at most k.

    Those below `share` of the largest are left out, and those that the squares cannot show.

    Args:
        gram: XᵀX [n, n], float64.
        share: of the largest singular value, in [0, 1).
        k: how many at most.

    Returns:
        The values [k] and the vectors [n, k], float64.

    Examples:
        >>> import torch
        >>> from submerge.algebra import rooted
        >>> x = torch.diag(torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64))
        >>> s, vectors = rooted(x.T @ x, share=1e-6)
        >>> s.round(decimals=4), vectors.shape
        (tensor([3., 1.], dtype=torch.float64), torch.Size([3, 2]))
    """
    squares, vectors = torch.linalg.eigh(gram)
    s = squares.flip(0).clamp_(min=0).sqrt()
    rank = _rank(s, max(share, GRAM_FLOOR))
    k = rank if k is None else min(k, rank)
    return s[:k], vectors.flip(1)[:, :k]


def inverse_root(gram: torch.Tensor, share: float) -> torch.Tensor:
    """Return (XᵀX)^(−1/2) on the numerical range of X, so that its product with X is X's polar factor.

    Args:
        gram: XᵀX [n, n], float64; so is the result.
        share: singular values below this share of the largest count as zero.

    Examples:
        >>> import torch
        >>> from submerge.algebra import inverse_root
        >>> gram = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))
        >>> inverse_root(gram, share=1e-6).diag().round(decimals=4)
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    s, vectors = rooted(gram, share)
    return (vectors / s) @ vectors.T


def polar(x: torch.Tensor) -> torch.Tensor:
    """Return the polar factor u vᵀ of x = u s vᵀ, shape [m, k], by the Gram matrix of the short side.

    It is the nearest matrix with orthonormal columns (rows, where k > m). Where x is rank-deficient that is
    not unique; then directions with s ≤ √max(m, k) · eps · s_1 are left out and the result is the
    partial isometry on x's own range, which is unique.

    Examples:
        >>> import torch
        >>> from submerge.algebra import polar
        >>> polar(torch.tensor([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]])).diag().round(decimals=4)
        tensor([1., 1.])
    """
    if x.shape[0] < x.shape[1]:
        return polar(x.T).T
    share = tolerance((x.shape[0], x.shape[1]), x.dtype)
    return (x.double() @ inverse_root(Dense(x).column_gram(), share)).to(x.dtype)
