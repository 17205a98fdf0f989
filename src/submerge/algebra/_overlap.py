"""How two subspaces lie to one another, and how much of several updates their shared directions hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from submerge.algebra._leading import leading
from submerge.algebra._update import Update
from submerge.deferred import torch

__all__ = ["KeptEnergy", "kept_energy", "principal_angles"]


def principal_angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the principal angles between two subspaces, ascending, in radians.

    The first is the smallest angle that a direction of one makes with a direction of the other, the second
    the smallest among directions orthogonal to those, and so on (Jordan 1875; computed as by Björck & Golub
    1973). Equal subspaces have angles 0, orthogonal ones π/2; of random subspaces of dimensions p ≥ q of a
    space of dimension d the mean of the squared cosines is p/d.

    Args:
        a: an orthonormal basis [d, p].
        b: an orthonormal basis [d, q].

    Returns:
        The angles [min(p, q)], float64, in [0, π/2].

    Examples:
        >>> import torch
        >>> from submerge.algebra import principal_angles
        >>> x, y, z = torch.eye(3).unsqueeze(2)
        >>> principal_angles(torch.cat([x, y], 1), torch.cat([(y + z) / 2**0.5, x], 1)).rad2deg().round()
        tensor([ 0., 45.], dtype=torch.float64)
    """
    wide, narrow = (a, b) if a.shape[1] >= b.shape[1] else (b, a)
    wide, narrow = wide.double(), narrow.double()
    inside = wide.T @ narrow
    cosines = torch.linalg.svdvals(inside).clamp(max=1)
    sines = torch.linalg.svdvals(narrow - wide @ inside).flip(0).clamp(max=1)
    # A cosine near 1 hides an angle below 1e-8, as does a sine near 1 one that near π/2.
    angles: torch.Tensor = torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())
    return angles


@dataclass(frozen=True)
class KeptEnergy:
    """The shares of Σ‖Δ_t‖² that k shared directions hold, for each of several k.

    Attributes:
        ranks: the numbers k, ascending.
        left: Σ‖U_kᵀ Δ_t‖² / Σ‖Δ_t‖².
        right: Σ‖Δ_t V_k‖² / Σ‖Δ_t‖².
        both: Σ‖U_kᵀ Δ_t V_k‖² / Σ‖Δ_t‖², which SSAM of rank k calls `kept`.
        each: for each update ‖U_kᵀ Δ_t V_k‖² / ‖Δ_t‖²; 1 where the update is zero.

    Examples:
        >>> from submerge.algebra import KeptEnergy
        >>> kept = KeptEnergy((1, 2), (0.5, 1.0), (0.5, 1.0), (0.25, 1.0), ((0.5, 1.0), (0.0, 1.0)))
        >>> kept.at(2)
        1.0
    """

    ranks: tuple[int, ...]
    left: tuple[float, ...]
    right: tuple[float, ...]
    both: tuple[float, ...]
    each: tuple[tuple[float, ...], ...]

    def at(self, rank: int, update: int | None = None) -> float:
        """Return what one of the `ranks` holds of all updates on both sides, or of one update."""
        shares = self.both if update is None else self.each[update]
        return shares[self.ranks.index(rank)]


def kept_energy(updates: Sequence[Update], ranks: Sequence[int]) -> KeptEnergy:
    """Return how much of updates of one shape the shared subspaces of several ranks hold.

    U_k and V_k are those of `shared_subspace`: the first k columns of one U and one V. With the core
    M_t = Uᵀ Δ_t V of the largest rank, ‖U_kᵀ Δ_t V_k‖² is the sum of squares in the first k rows and columns
    of M_t, so that all ranks cost what the largest costs.

    Args:
        updates: of one shape, not all of them zero.
        ranks: the numbers of directions, from 1 on.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, kept_energy
        >>> first = Dense(torch.diag(torch.tensor([3.0, 1.0, 0.0])))
        >>> second = Dense(torch.diag(torch.tensor([4.0, 0.0, 1.0])))
        >>> [round(share, 3) for share in kept_energy([first, second], [1, 3]).both]  # 25 of 27
        [0.926, 1.0]
    """
    ranks = sorted(set(ranks))
    left, right = leading(updates, "left", ranks[-1]), leading(updates, "right", ranks[-1])
    energies = [update.norm**2 for update in updates]
    inside = [
        _leading_squares(left.vectors.T @ update.matmul(right.vectors), ranks)
        if energy
        else [0.0] * len(ranks)
        for update, energy in zip(updates, energies, strict=True)
    ]
    return KeptEnergy(
        ranks=tuple(ranks),
        left=tuple(left.kept(k) for k in ranks),
        right=tuple(right.kept(k) for k in ranks),
        both=tuple(_share(math.fsum(of_all), math.fsum(energies)) for of_all in zip(*inside, strict=True)),
        each=tuple(
            tuple(_share(square, energy) for square in squares)
            for squares, energy in zip(inside, energies, strict=True)
        ),
    )


def _leading_squares(core: torch.Tensor, ranks: Sequence[int]) -> list[float]:
    """Return for each k the sum of squares in the first k rows and columns of a core."""
    sums = core.square().cumsum(0).cumsum(1)
    rows, columns = core.shape
    return [float(sums[min(k, rows) - 1, min(k, columns) - 1]) for k in ranks]


def _share(part: float, total: float) -> float:
    return min(1.0, part / total) if total else 1.0
