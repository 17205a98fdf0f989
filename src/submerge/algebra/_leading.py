"""The leading eigenvectors of Σ_t Δ_t Δ_tᵀ or Σ_t Δ_tᵀ Δ_t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from submerge.algebra._update import Update, Zero

__all__ = ["Leading", "leading"]

SMALL = 512
"""The side up to which all eigenvectors are computed, whatever the number that is asked for."""
EIGH = 4.5
"""Multiplications of a symmetric eigendecomposition, in cubes of its side."""
EXPECTED = 2
"""Restarts that a spectrum that decays takes; the cost of iterating is counted with so many."""
ROUNDS = 6
"""Products with the Gram matrix that a Krylov basis is built from."""
RESTARTS = 4
SETTLES = 10.0
"""What a restart must at least divide the misplaced share by; a flat spectrum does not, and is given up."""
EXACT = 1e-7
"""The share of ‖Δ‖ that may be misplaced by a subspace that counts as found: float32's own rounding."""
TIE = 1e-6


@dataclass(frozen=True)
class Leading:
    """Eigenvectors [d, k], their eigenvalues and the next one [k + 1] at most, and the trace."""

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
        held = self.values.cumsum(0) >= share * self.trace * (1 - 1e-12)
        return int((~held).sum()) + 1 if bool(held.any()) else self.vectors.shape[1]

    def tied(self, k: int) -> bool:
        """Return whether eigenvalues k and k + 1 are equal to rounding."""
        if not 0 < k < len(self.values):
            return False
        gap = float(self.values[k - 1] - self.values[k])
        return gap <= TIE * float(self.values[0])


def leading(updates: Sequence[Update], side: str, most: int, share: float = 1.0) -> Leading:
    """Return up to `most` leading eigenvectors of the summed Gram matrix of a side, in float64.

    Directions below the numerical rank are left out, for any vector would do there. All are computed from the
    Gram matrix unless so few of a large side are wanted that a block Krylov iteration is cheaper; it finds
    them from products with the updates alone, and gives way to the whole where it does not settle.
    """
    length = updates[0].shape[0 if side == "left" else 1]
    terms = [u for u in updates if not isinstance(u, Zero)]
    if not terms:
        return Leading(torch.zeros(length, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), 0.0)
    if share >= 1 and length > SMALL and _iterates(terms, length, most):
        found = _iterated(terms, side, length, most)
        if found is not None:
            return found
    gram = terms[0].gram(side)
    for update in terms[1:]:
        gram += update.gram(side)
    trace = float(gram.trace())
    values, vectors = torch.linalg.eigh(gram)
    del gram  # a large one is worth it, before the copy
    return _ranked(values.flip(0), vectors.flip(1), most, trace)


def _iterates(updates: Sequence[Update], length: int, most: int) -> bool:
    """Return whether iterating takes clearly fewer multiplications than decomposing the Gram matrix."""
    width = _width(most)
    if ROUNDS * width > length:
        return False
    sizes = [math.prod(u.shape) if u.rank == min(u.shape) else u.rank * sum(u.shape) for u in updates]
    whole = sum(sizes) * length + EIGH * length**3
    turns = 2 * ROUNDS * length * width**2
    products = ROUNDS * (2 * sum(sizes) * width + 2 * turns)
    return 1.5 * EXPECTED * (products + EIGH * (ROUNDS * width) ** 3) < whole


def _width(most: int) -> int:
    """Return the columns of a block: some more than are wanted, so that the last of them settle."""
    return most + max(8, most // 4)


def _ranked(values: torch.Tensor, vectors: torch.Tensor, most: int, trace: float) -> Leading:
    values = values.clamp(min=0)
    eps = torch.finfo(torch.float32).eps
    floor = (len(values) * eps) ** 2 * float(values[0]) if len(values) else 0.0
    rank = int((values > floor).sum())
    k = min(most, rank)
    return Leading(vectors[:, :k], values[: min(k + 1, rank)], trace)


def _iterated(updates: Sequence[Update], side: str, length: int, most: int) -> Leading | None:
    """Return the leading eigenvectors by block Krylov iteration, or None where they do not settle."""
    generator = torch.Generator().manual_seed(length)
    width = _width(most)
    settled = 1 / SETTLES
    trace = math.fsum(u.norm**2 for u in updates)
    start = torch.randn(length, width, generator=generator, dtype=torch.float64)
    for _ in range(RESTARTS):
        blocks = [_orthonormal(start)]
        images: list[torch.Tensor] = []
        while len(images) < ROUNDS:
            images.append(_applied(updates, side, blocks[-1]))
            if len(blocks) < ROUNDS:
                fresh = images[-1]
                for _again in range(2):  # once more, for where little was left it was mostly rounding
                    for block in blocks:
                        fresh = fresh - block @ (block.T @ fresh)
                    fresh = _orthonormal(fresh)
                blocks.append(fresh)
        basis, image = torch.cat(blocks, dim=1), torch.cat(images, dim=1)
        values, turn = torch.linalg.eigh(basis.T @ image)
        values, turn = values.flip(0)[: width + 1], turn.flip(1)[:, :width]
        start, moved = basis @ turn, image @ turn
        found = _ranked(values, start, most, trace)
        before, settled = settled, _misplaced(found, moved)
        if settled <= EXACT:
            return found
        if settled * SETTLES > before:
            break
    return None


def _misplaced(found: Leading, moved: torch.Tensor) -> float:
    """Return, to first order, the share of ‖Δ‖ that errors of the vectors move across the cut.

    A vector with residual r_j leaks out of the subspace by r_j / (λ_j − λ_{k+1}), and with it goes its
    part λ_j of the trace.
    """
    k = found.vectors.shape[1]
    values = found.values[:k]
    beyond = found.values[k] if len(found.values) > k else 0.0
    residual = (moved[:, :k] - found.vectors * values).norm(dim=0)
    leak = residual / (values - beyond).clamp(min=1e-300)
    return math.sqrt(float((leak.square() * values).sum()) / max(found.trace, 1e-300))


def _applied(updates: Sequence[Update], side: str, x: torch.Tensor) -> torch.Tensor:
    """Return Σ Δ_t Δ_tᵀ x or Σ Δ_tᵀ Δ_t x."""
    out = torch.zeros_like(x)
    for update in updates:
        out += update.times(update.under(x).T) if side == "left" else update.under(update.times(x)).T
    return out


def _orthonormal(x: torch.Tensor) -> torch.Tensor:
    q: torch.Tensor = torch.linalg.qr(x)[0]
    return q
