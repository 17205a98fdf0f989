"""The leading eigenvectors of Σ_t Δ_t Δ_tᵀ or Σ_t Δ_tᵀ Δ_t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from submerge.algebra._krylov import ROUNDS, block_width, krylov_eigenpairs, numerical_rank
from submerge.algebra._update import Update, Zero
from submerge.deferred import torch

__all__ = ["Leading", "leading"]

SMALL = 512
"""The side up to which all eigenvectors are computed, whatever the number that is asked for."""
EIGH = 4.5
"""Multiplications of a symmetric eigendecomposition, in cubes of its side."""
EXPECTED = 2
"""Krylov bases that a spectrum that decays takes; the cost of iterating is counted with so many."""
MARGIN = 1.5
"""What decomposing must cost more than iterating, which may be given up, and is then paid besides."""
TIE = 1e-6
"""The share of the largest eigenvalue by which two may differ and count as equal."""


@dataclass(frozen=True)
class Leading:
    """Eigenvectors [d, k], their eigenvalues and the next one [k + 1] at most, and the trace.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, leading
        >>> eigen = leading([Dense(torch.diag(torch.tensor([2.0, 1.0])))], "left", most=2)
        >>> round(eigen.kept(1), 4), eigen.enough(0.9)
        (0.8, 2)
        >>> eigen.tied(1)
        False
    """

    vectors: torch.Tensor
    values: torch.Tensor
    trace: float

    def kept(self, k: int) -> float:
        """Return the share of the trace that the first k hold; 1 for a zero matrix."""
        return min(1.0, float(self.values[:k].sum()) / self.trace) if self.trace > 0 else 1.0

    def enough(self, share: float) -> int:
        """Return the smallest k that holds at least this share of the trace."""
        if self.trace <= 0:
            return 0
        reached = self.values.cumsum(0) >= share * self.trace * (1 - 1e-12)
        return int((~reached).sum()) + 1 if bool(reached.any()) else self.vectors.shape[1]

    def tied(self, k: int) -> bool:
        """Return whether eigenvalues k and k + 1 are equal to rounding."""
        if not 0 < k < len(self.values):
            return False
        gap = float(self.values[k - 1] - self.values[k])
        return gap <= TIE * float(self.values[0])


def leading(updates: Sequence[Update], side: str, most: int, share: float = 1.0) -> Leading:
    """Return up to `most` leading eigenvectors of the summed Gram matrix of a side, in float64.

    Directions below the numerical rank are left out, for any vector would do there. All are computed from the
    Gram matrix unless so few of a large side are wanted that a block Krylov iteration is cheaper; it needs
    products with the updates alone. Where that does not converge the Gram matrix is decomposed after all.

    Args:
        updates: of one shape [m, n].
        side: "left" for Σ Δ_t Δ_tᵀ [m, m], "right" for Σ Δ_tᵀ Δ_t [n, n].
        most: how many at most.
        share: of the trace that the caller will ask `enough` for; below 1 all eigenvalues are computed.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, leading
        >>> first = Dense(torch.diag(torch.tensor([3.0, 0.0, 1.0])))
        >>> second = Dense(torch.diag(torch.tensor([4.0, 0.0, 0.0])))
        >>> eigen = leading([first, second], "right", most=1)
        >>> eigen.vectors.shape, eigen.values.round().tolist(), eigen.trace
        (torch.Size([3, 1]), [25.0, 1.0], 26.0)
    """
    size = updates[0].shape[0 if side == "left" else 1]
    terms = [u for u in updates if not isinstance(u, Zero)]
    if not terms:
        return Leading(torch.zeros(size, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), 0.0)
    if share >= 1 and size > SMALL and _iterating_is_cheaper(terms, size, most):
        trace = math.fsum(u.norm**2 for u in terms)
        pairs = krylov_eigenpairs(lambda x: _gram_product(terms, side, x), size, most, trace)
        if pairs is not None:
            return _cut(*pairs, most, trace)
    return _decomposed(terms, side, most)


def _iterating_is_cheaper(updates: Sequence[Update], size: int, most: int) -> bool:
    """Return whether iterating takes clearly fewer multiplications than decomposing the Gram matrix."""
    width = block_width(most)
    if ROUNDS * width > size:
        return False
    entries = sum(math.prod(u.shape) if u.rank == min(u.shape) else u.rank * sum(u.shape) for u in updates)
    decomposing = entries * size + EIGH * size**3
    products = 2 * ROUNDS * entries * width
    orthogonalising = 4 * size * (ROUNDS * width) ** 2
    iterating = products + orthogonalising + EIGH * (ROUNDS * width) ** 3
    return MARGIN * EXPECTED * iterating < decomposing


def _gram_product(updates: Sequence[Update], side: str, x: torch.Tensor) -> torch.Tensor:
    """Return Σ Δ_t Δ_tᵀ x or Σ Δ_tᵀ Δ_t x, without the Gram matrix."""
    out = torch.zeros_like(x)
    for update in updates:
        if side == "left":
            out += update.matmul(update.rmatmul(x.T).T)
        else:
            out += update.rmatmul(update.matmul(x).T).T
    return out


def _decomposed(updates: Sequence[Update], side: str, most: int) -> Leading:
    """Return the leading eigenvectors from all of the Gram matrix's."""
    gram = _gram(updates[0], side)
    for update in updates[1:]:
        gram += _gram(update, side)
    trace = float(gram.trace())
    values, vectors = torch.linalg.eigh(gram)
    del gram  # as large as the vectors, of which a flipped copy comes next
    return _cut(values.flip(0), vectors.flip(1), most, trace)


def _gram(update: Update, side: str) -> torch.Tensor:
    return update.row_gram() if side == "left" else update.column_gram()


def _cut(values: torch.Tensor, vectors: torch.Tensor, most: int, trace: float) -> Leading:
    """Return the first `most` eigenvectors, none beyond the numerical rank, and one eigenvalue more."""
    values = values.clamp(min=0)
    rank = numerical_rank(values)
    k = min(most, rank)
    return Leading(vectors[:, :k], values[: min(k + 1, rank)], trace)
