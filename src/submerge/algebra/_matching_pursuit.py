"""Vectors as sparse combinations of others, by orthogonal matching pursuit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from submerge.deferred import torch

__all__ = ["SparseCodes", "matching_pursuit", "pursuit_bytes"]

TOLERANCE = 1e-6
"""The share of a vector's length below which its residual is rounding: it is represented exactly."""
_TARGETS, _ATOMS = 256, 4096
"""Correlations that are computed at a time: they stay in the cache until the largest is known."""
_HELD = 1 << 23
"""Elements of the orthogonal directions of one block of targets, at most."""


@dataclass(frozen=True)
class SparseCodes:
    """Vectors y_i ≈ Σ_j c_ij a_(s_ij), as combinations of k atoms each.

    Attributes:
        indices: s [n, k], int64; atoms that a vector does not need are the first, with a coefficient of 0.
        coefficients: c [n, k], float64.
        residuals: ‖y_i − Σ_j c_ij a_(s_ij)‖ / ‖y_i‖ [n], float64; 0 for a vector of zeros.

    Examples:
        >>> import torch
        >>> from submerge.algebra import matching_pursuit
        >>> matching_pursuit(torch.tensor([[3.0, 4.0]]), torch.eye(2), k=1).residuals
        tensor([0.6000], dtype=torch.float64)
    """

    indices: torch.Tensor
    coefficients: torch.Tensor
    residuals: torch.Tensor


def matching_pursuit(targets: torch.Tensor, atoms: torch.Tensor, k: int, *, threads: int = 1) -> SparseCodes:
    """Return each target as a combination of at most k atoms, by orthogonal matching pursuit.

    Step t takes the atom that the residual is most correlated with, and fits all atoms so far anew:

        s_t = argmax_j |⟨r_(t−1), a_j⟩| / ‖a_j‖,    c = argmin ‖y − A_S c‖,    r_t = y − A_S c.

    The least squares are those of a QR factorisation A_S = Q R that grows by a column a step: r loses its
    part along the new direction, and c = R⁻¹ Qᵀ y comes at the end. Q is orthogonalised twice, in float64;
    only the correlations, which take nearly all of the time, are in float32. A target whose residual is
    rounding takes no more atoms, so one that is a multiple of an atom has this atom alone.

    Blocks of targets are cut alike for any number of threads.

    Args:
        targets: y [n, d].
        atoms: a [m, d]; atoms of zeros are never taken.
        k: atoms for a target; cut to m and to d, with which every target has a residual of 0.
        threads: blocks that are worked on at once.

    Pati, Rezaiifar and Krishnaprasad, "Orthogonal Matching Pursuit" (1993); for tokens, Goddard and Fernandes
    Neto, arXiv 2506.06607.

    Examples:
        >>> import torch
        >>> from submerge.algebra import matching_pursuit
        >>> codes = matching_pursuit(torch.tensor([[0.0, 3.0, -4.0]]), torch.eye(3), k=2)
        >>> codes.indices.tolist(), codes.coefficients.tolist()
        ([[2, 1]], [[-4.0, 3.0]])
    """
    k = min(k, *atoms.shape)
    tiles = [_directions(tile) for tile in torch.split(atoms, _ATOMS)]
    size = _block(targets.shape[1], k)
    with ThreadPoolExecutor(threads) as pool:
        codes = list(pool.map(lambda block: _pursued(block, atoms, tiles, k), torch.split(targets, size)))
    return SparseCodes(
        torch.cat([own.indices for own in codes]),
        torch.cat([own.coefficients for own in codes]),
        torch.cat([own.residuals for own in codes]),
    )


def pursuit_bytes(targets: int, width: int, k: int) -> int:
    """Return the bytes that one thread of a pursuit holds at most: orthogonal directions, and copies of them.

    Examples:
        >>> from submerge.algebra import pursuit_bytes
        >>> pursuit_bytes(targets=20_000, width=576, k=64) // 10**6
        200
    """
    return 8 * 3 * min(targets, _block(width, k)) * width * k


def _block(width: int, k: int) -> int:
    """Return how many targets are worked on at a time."""
    return max(16, min(_TARGETS, _HELD // max(1, width * k)))


def _directions(atoms: torch.Tensor) -> torch.Tensor:
    """Return atoms [m, d] divided by their lengths, as columns, in float32."""
    columns = atoms.float().T.contiguous()
    lengths = columns.norm(dim=0)
    return columns.mul_(torch.where(lengths > 0, 1 / lengths, 0))


def _pursued(targets: torch.Tensor, atoms: torch.Tensor, tiles: list[torch.Tensor], k: int) -> SparseCodes:
    """Return the codes of one block of targets; `tiles` [d, m_i] are the atoms' directions."""
    pursuit = _Pursuit(targets.double(), k)
    for step in range(k):
        if not len(pursuit.active):
            break
        chosen = _most_correlated(pursuit.residuals.float(), tiles)
        pursuit.take(step, chosen, atoms[chosen].double())
    return pursuit.codes()


def _most_correlated(residuals: torch.Tensor, tiles: list[torch.Tensor]) -> torch.Tensor:
    """Return for each residual the number of the direction that it is most correlated with."""
    best = residuals.new_full((len(residuals),), -1)
    chosen = torch.zeros(len(residuals), dtype=torch.int64)
    first = 0
    for tile in tiles:
        largest, place = torch.mm(residuals, tile).abs_().max(1)
        better = largest > best
        best = torch.where(better, largest, best)
        chosen = torch.where(better, place + first, chosen)
        first += tile.shape[1]
    return chosen


class _Pursuit:
    """The state of one block of targets; `residuals` [a, d] are those of the `active` ones alone."""

    def __init__(self, targets: torch.Tensor, k: int) -> None:
        n, width = targets.shape
        self.residuals, self.lengths = targets, targets.norm(dim=1)
        self.indices = torch.zeros(n, k, dtype=torch.int64)
        self.basis = targets.new_zeros(n, k, width)
        self.triangle = torch.eye(k, dtype=targets.dtype).repeat(n, 1, 1)
        self.parts = targets.new_zeros(n, k)
        self.left = self.lengths.clone()
        self.active = torch.arange(n)
        self._keep(self.lengths > 0)

    def take(self, step: int, chosen: torch.Tensor, atoms: torch.Tensor) -> None:
        """Add an atom [a, d] to each active target; one in the span of its others is all that is left."""
        basis = self.basis if len(self.active) == len(self.basis) else self.basis[self.active]
        direction, shares = self._orthogonalised(atoms, basis[:, :step])
        height = direction.norm(dim=1)
        new = height > TOLERANCE * atoms.norm(dim=1)
        self._keep(new)
        rows, direction, height = self.active, direction[new] / height[new, None], height[new]
        part = (direction * self.residuals).sum(1)
        self.indices[rows, step] = chosen[new]
        self.basis[rows, step], self.parts[rows, step] = direction, part
        self.triangle[rows, :step, step], self.triangle[rows, step, step] = shares[new], height
        self.residuals = self.residuals - part[:, None] * direction
        self.left[rows] = self.residuals.norm(dim=1)
        self._keep(self.left[rows] > TOLERANCE * self.lengths[rows])

    def _orthogonalised(self, atoms: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what of each atom is orthogonal to its basis [a, t, d], and its shares [a, t] along that."""
        shares = atoms.new_zeros(basis.shape[:2])
        for _ in range(2):  # once more, for what rounding leaves of the others' directions
            share = torch.bmm(basis, atoms[:, :, None])[:, :, 0]
            atoms = atoms - torch.bmm(share[:, None], basis)[:, 0]
            shares = shares + share
        return atoms, shares

    def codes(self) -> SparseCodes:
        """Return what was found."""
        solved = torch.linalg.solve_triangular(self.triangle, self.parts[:, :, None], upper=True)
        residuals = torch.where(self.lengths > 0, self.left / self.lengths, 0)
        return SparseCodes(self.indices, solved[:, :, 0], residuals)

    def _keep(self, still: torch.Tensor) -> None:
        if not still.all():
            self.residuals, self.active = self.residuals[still], self.active[still]
