"""Chooses a free scale on validation items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["FINALISTS", "HOPELESS", "Choice", "tune"]

FINALISTS = 2
"""Scales that are scored on all validation items, after a screening on some of them."""

HOPELESS = 0.15
"""A screening goes up the grid, and ends at a scale that is so far below the best."""


@dataclass(frozen=True)
class Choice:
    """The best scale, and what was seen on the way: scale -> mean score."""

    scale: float
    screened: dict[float, float] = field(default_factory=dict)
    scored: dict[float, float] = field(default_factory=dict)

    @property
    def at_end(self) -> str:
        """Say at which end of the grid the choice lies, if at one: then the grid may be too short."""
        tried = sorted(self.screened or self.scored)
        if len(tried) < 2:
            return ""
        return {tried[0]: "low", tried[-1]: "high"}.get(self.scale, "")


def tune(
    grid: Sequence[float],
    score: Callable[[float], float],
    screen: Callable[[float], float] | None = None,
    finalists: int = FINALISTS,
) -> Choice:
    """Return the scale with the best score on all validation items; of equal ones the smaller.

    With `screen`, a score on part of the items, only the `finalists` best of it are scored on all.
    """
    screened = _screen(sorted(grid), screen) if screen else {}
    left = sorted(grid)
    if screened:
        left = sorted(sorted(screened, key=lambda scale: (-screened[scale], scale))[:finalists])
    scored = {scale: score(scale) for scale in left}
    return Choice(min(scored, key=lambda scale: (-scored[scale], scale)), screened, scored)


def _screen(grid: Sequence[float], score: Callable[[float], float]) -> dict[float, float]:
    """Return scale -> score of every second scale while there is hope, and of the best one's neighbours."""
    found: dict[float, float] = {}
    for scale in grid[::2]:
        found[scale] = score(scale)
        if found[scale] < max(found.values()) - HOPELESS:
            break
    best = grid.index(max(found, key=lambda scale: found[scale]))
    for scale in grid[max(0, best - 1) : best + 2]:
        if scale not in found:
            found[scale] = score(scale)
    return dict(sorted(found.items()))
