"""Updates as LoRA factors of a wanted rank."""

from __future__ import annotations

from dataclasses import dataclass

from submerge.algebra._spectrum import Svd, enough, svd
from submerge.algebra._update import LowRank, Update, Zero

__all__ = ["Factored", "factored"]


@dataclass(frozen=True)
class Factored:
    """An update as factors, and the share of ‖Δ‖² that they keep, in [0, 1].

    Examples:
        >>> import torch
        >>> from submerge.algebra import Factored, LowRank
        >>> Factored(LowRank(torch.ones(4, 1), torch.ones(1, 3)), kept=0.75).error
        0.5
    """

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

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, factored
        >>> lora = factored(Dense(torch.diag(torch.tensor([3.0, 2.0, 1.0]))), rank=1)
        >>> lora.update.rank, round(lora.kept, 4)
        (1, 0.6429)
    """
    if isinstance(update, Zero):
        return Factored(update, 1.0)
    most = min(update.shape) if rank is None else min(rank, *update.shape)
    if isinstance(update, LowRank) and update.left.shape[1] <= most and energy is None:
        return Factored(update, 1.0)
    triplets = svd(update)
    squares = triplets.s.double().square()
    total = float(squares.sum())
    if total == 0:
        return Factored(Zero(update.shape), 1.0)
    if energy is not None:
        most = min(most, enough(squares, energy))
    kept = float(squares[:most].sum()) / total
    return Factored(_balanced(triplets.cut(most)), min(1.0, kept))


def _balanced(triplets: Svd) -> LowRank:
    root = triplets.s.sqrt()
    return LowRank(triplets.u * root, (triplets.v * root).T.contiguous())
