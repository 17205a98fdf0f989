"""Updates as LoRA factors of a wanted rank."""

from __future__ import annotations

from dataclasses import dataclass

from submerge.algebra._spectrum import Svd, enough, svd
from submerge.algebra._update import LowRank, Update, Zero

__all__ = ["Factored", "factored"]


@dataclass(frozen=True)
class Factored:
    """An update as factors, and the share of ‖Δ‖² that they keep, in [0, 1]."""

    update: LowRank | Zero
    kept: float

    @property
    def error(self) -> float:
        """‖Δ − factors‖ / ‖Δ‖."""
        return float(max(0.0, 1 - self.kept) ** 0.5)


def factored(update: Update, rank: int | None = None, energy: float | None = None) -> Factored:
    """Return the update as factors of at most `rank`, the best ones in the Frobenius norm.

    With `energy` the rank is the smallest that keeps this share of ‖Δ‖², at most `rank`. Factors that
    are already narrow enough come back as they are, bit for bit; new ones are balanced: u √s and √s vᵀ.
    """
    if isinstance(update, Zero):
        return Factored(update, 1.0)
    most = min(update.shape) if rank is None else min(rank, *update.shape)
    if isinstance(update, LowRank) and update.left.shape[1] <= most and energy is None:
        return Factored(update, 1.0)
    found = svd(update)
    squares = found.s.double().square()
    whole = float(squares.sum())
    if whole == 0:
        return Factored(Zero(update.shape), 1.0)
    if energy is not None:
        most = min(most, enough(squares, energy))
    kept = float(squares[:most].sum()) / whole
    return Factored(_balanced(found.cut(most)), min(1.0, kept))


def _balanced(found: Svd) -> LowRank:
    root = found.s.sqrt()
    return LowRank(found.u * root, (found.v * root).T.contiguous())
