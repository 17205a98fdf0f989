"""A few leading eigenpairs of a large symmetric matrix G ⪰ 0, from products with it alone.

Block Krylov iteration (Golub & Underwood 1977; Musco & Musco 2015, arXiv 1504.05477) with restarts:

1. an orthonormal basis Q of the block Krylov space [X, G X, …, G^(b−1) X] of a start X [d, w];
2. Rayleigh–Ritz: the eigenpairs of Qᵀ G Q, taken back by Q, are the best that Q holds;
3. the residuals G v − λ v bound how far the leading subspace is off. Enough: done. Else the Ritz vectors are
   the next start.

Power iteration multiplies each error by (λ_{w+1} / λ_k) a product. The Krylov space holds the results of all
polynomials of degree b − 1 in G, among them the one that dampens the unwanted eigenvalues most, and so takes
about the square root as many products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from submerge.deferred import torch

__all__ = ["ROUNDS", "block_width", "krylov_eigenpairs", "numerical_rank"]

Operator: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""Maps X [d, w] to G X."""

ROUNDS = 6
"""Products with G in one Krylov basis, b. With more of them fewer restarts are needed, but the cost of
orthogonalising grows with b², and that of the Rayleigh–Ritz step with b³."""
RESTARTS = 4
"""The most Krylov bases. What has not converged by then would have been cheaper to decompose."""
PROGRESS = 10.0
"""What each basis must divide the misplaced share by. Where a spectrum is flat none does: it is given up."""
CONVERGED = 1e-7
"""The share of ‖Δ‖ that a subspace may misplace and count as found: what rounding to float32 misplaces."""


def krylov_eigenpairs(
    apply: Operator, size: int, most: int, trace: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return leading eigenvalues [w + 1] and eigenvectors [d, w] of G, descending, or None.

    The first `most` of them are right, if they are above rounding; the others have not converged. None says
    that the iteration converges too slowly to be worth it: eigenvalues about the cut are too close.

    Args:
        apply: X ↦ G X, float64.
        size: d, the side of G.
        most: how many are wanted.
        trace: of G.
    """
    # A fixed seed: the same matrices give the same bytes in every run.
    generator = torch.Generator().manual_seed(size)
    start = torch.randn(size, block_width(most), generator=generator, dtype=torch.float64)
    previous = 1 / PROGRESS  # the first basis must do better, too: a random start has misplaced all
    for _ in range(RESTARTS):
        basis, image = _krylov_basis(apply, start)
        values, vectors, images = _rayleigh_ritz(basis, image, start.shape[1])
        misplaced = _misplaced(values, vectors, images, most, trace)
        if misplaced <= CONVERGED:
            return values, vectors
        if misplaced * PROGRESS > previous:
            break
        # A restart has in w columns the best of b w. To go on with the basis instead would need more memory
        # and the cube of more columns, for first blocks that no longer add anything.
        previous, start = misplaced, vectors
    return None


def block_width(most: int) -> int:
    """Return the columns w of a block.

    The error of eigenvector k shrinks with λ_{w+1} / λ_k. For w = k that is almost 1 where the spectrum is
    smooth; a quarter more columns open a gap behind the last that is wanted.
    """
    return most + max(8, most // 4)


def numerical_rank(values: torch.Tensor) -> int:
    """Return how many descending eigenvalues of a Gram matrix of float32 data are above rounding.

    They are squares of singular values, and rounding alone makes singular values of up to eps of the largest
    times the dimension.
    """
    if not len(values):
        return 0
    floor = (len(values) * torch.finfo(torch.float32).eps) ** 2 * float(values[0])
    return int((values > floor).sum())


def _krylov_basis(apply: Operator, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an orthonormal basis Q [d, b w] of [X, G X, …, G^(b−1) X] for X [d, w], and G Q."""
    blocks = [_orthonormal(start)]
    images = [apply(blocks[0])]
    while len(blocks) < ROUNDS:
        blocks.append(_orthogonalised(images[-1], blocks))
        images.append(apply(blocks[-1]))
    return torch.cat(blocks, dim=1), torch.cat(images, dim=1)


def _orthogonalised(x: torch.Tensor, blocks: list[torch.Tensor]) -> torch.Tensor:
    """Return an orthonormal basis of what is left of x [d, w] outside of the blocks.

    Twice: G X lies almost in the span of the blocks before it. Of the little that a subtraction leaves, much
    is rounding inside that span. Normalised it is no longer little, and the basis would not stay orthogonal
    for a few rounds. The second time the subtraction is small, and so is its rounding (Kahan's and Parlett's
    "twice is enough").
    """
    for _ in range(2):
        for block in blocks:
            x = x - block @ (block.T @ x)
        x = _orthonormal(x)
    return x


def _orthonormal(x: torch.Tensor) -> torch.Tensor:
    q: torch.Tensor = torch.linalg.qr(x)[0]
    return q


def _rayleigh_ritz(
    basis: torch.Tensor, image: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return Ritz values [w + 1], Ritz vectors V [d, w] and G V, from a basis Q [d, b w] and G Q.

    One value more than vectors: the next one says how far the cut is from what lies beyond.
    """
    values, rotation = torch.linalg.eigh(basis.T @ image)
    values, rotation = values.flip(0)[: width + 1], rotation.flip(1)[:, :width]
    return values, basis @ rotation, image @ rotation


def _misplaced(
    values: torch.Tensor, vectors: torch.Tensor, images: torch.Tensor, most: int, trace: float
) -> float:
    """Return, to first order, the share of ‖Δ‖ that errors of the vectors move across the cut.

    A vector with residual r_j = ‖G v_j − λ_j v_j‖ leaks out of the subspace by r_j / (λ_j − λ_{k+1}),
    and with it goes its part λ_j of the trace. Residuals alone would ask too little of the vectors beside the
    cut, and errors of single vectors too much: within the subspace they may be rotated.
    """
    values = values.clamp(min=0)
    rank = numerical_rank(values)
    k = min(most, rank)
    beyond = values[k] if rank > k else 0.0
    leading = values[:k]
    residuals = (images[:, :k] - vectors[:, :k] * leading).norm(dim=0)
    leaks = residuals / (leading - beyond).clamp(min=1e-300)
    return math.sqrt(float((leaks.square() * leading).sum()) / max(trace, 1e-300))
