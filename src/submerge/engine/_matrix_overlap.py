"""How several updates of one weight matrix overlap: their angles, norms, and the energy that they share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from submerge.algebra import (
    Leading,
    LowRank,
    Update,
    frame,
    inner,
    kept_energy,
    leading,
    principal_angles,
)
from submerge.engine._inspection import MatrixOverlap, PairOverlap

__all__ = ["matrix_overlap"]

DIRECTIONS = 32
"""Singular directions of a dense update that are compared by default; of factors all are."""
POINTS = 24
"""Ranks at which the kept energy is noted, evenly up to the full one, besides half and max."""


def matrix_overlap(name: str, updates: Sequence[Update], rank: int | None) -> MatrixOverlap | None:
    """Return how updates of a matrix overlap; None where all are zero.

    Everything is computed from their cores in a common frame, K_t = Q_Lᵀ Δ_t Q_R: rotations change no angle,
    no norm and no share of energy, and the cores of adapters are small.
    """
    cores = frame(updates).cores
    most = [_directions(update, rank) for update in updates]
    models = [_Directions.of(core, k) for core, k in zip(cores, most, strict=True)]
    if not any(model.count for model in models):
        return None
    largest, full = max(most), min(sum(most), max(updates[0].shape))
    half = max(1, largest // 2)
    ranks = {half, largest, full, *(math.ceil(full * i / POINTS) for i in range(1, POINTS + 1))}
    return MatrixOverlap(
        name=name,
        shape=updates[0].shape,
        ranks=tuple(model.count for model in models),
        norms=tuple(core.norm for core in cores),
        stable_ranks=tuple(model.stable_rank for model in models),
        pairs=tuple(_pairs(models)),
        kept=kept_energy(cores, sorted(ranks)),
        half=half,
        max=largest,
        full=full,
    )


@dataclass(frozen=True)
class _Directions:
    """The leading left and right singular vectors of an update, in the coordinates of all updates' frame."""

    update: Update
    left: Leading
    right: Leading

    @classmethod
    def of(cls, update: Update, rank: int) -> _Directions:
        return cls(update, leading([update], "left", rank), leading([update], "right", rank))

    @property
    def count(self) -> int:
        return min(self.left.vectors.shape[1], self.right.vectors.shape[1])

    @property
    def stable_rank(self) -> float:
        return self.left.trace / float(self.left.values[0]) if self.count else 0.0


def _directions(update: Update, rank: int | None) -> int:
    """Return how many singular directions of an update are compared at most."""
    default = update.rank if isinstance(update, LowRank) else DIRECTIONS
    return min(update.rank, default if rank is None else rank)


def _pairs(models: Sequence[_Directions]) -> Iterator[PairOverlap]:
    for (i, a), (j, b) in combinations(enumerate(models), 2):
        if a.count and b.count:
            yield PairOverlap(
                first=i,
                second=j,
                cosine=inner(a.update, b.update) / (a.update.norm * b.update.norm),
                column_angles=tuple(principal_angles(a.left.vectors, b.left.vectors).tolist()),
                row_angles=tuple(principal_angles(a.right.vectors, b.right.vectors).tolist()),
            )
