"""Chooses a free scale on validation items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["FINALISTS", "HOPELESS", "ScaleChoice", "tune"]

FINALISTS = 2
"""Scales that are scored on all validation items, after a screening on some of them."""

HOPELESS = 0.15
"""A screening goes up the grid, and ends at a scale that is so far below the best."""


@dataclass(frozen=True)
class ScaleChoice:
    """The best scale of a grid with these ends, and all that was scored: scale -> mean score."""

    scale: float
    ends: tuple[float, float]
    screened: dict[float, float] = field(default_factory=dict)
    scored: dict[float, float] = field(default_factory=dict)

    @property
    def at_end(self) -> str:
        """Say at which end of the grid the choice lies, if at one: then the grid may be too short."""
        low, high = self.ends
        return "" if low == high else {low: "low", high: "high"}.get(self.scale, "")


def tune(
    grid: Sequence[float],
    score: Callable[[float], float],
    screen: Callable[[float], float] | None = None,
    finalists: int = FINALISTS,
    near: float | None = None,
) -> ScaleChoice:
    """Return the scale with the best score on all validation items; of equal ones the smaller.

    With `screen`, a score on part of the items, only the `finalists` best of it are scored on all. It begins
    at `near`, a scale of the grid that was best elsewhere, or else goes over the grid.
    """
    left, screened = sorted(grid), {}
    if screen:
        screened = _over(left, screen) if near is None else _around(left, screen, near)
        left = sorted(sorted(screened, key=lambda scale: (-screened[scale], scale))[:finalists])
    scored = {scale: score(scale) for scale in left}
    best = min(scored, key=lambda scale: (-scored[scale], scale))
    return ScaleChoice(best, (min(grid), max(grid)), screened, scored)


def _over(grid: Sequence[float], score: Callable[[float], float]) -> dict[float, float]:
    """Return scale -> score of every second scale while there is hope, and of the best one's neighbours."""
    scores: dict[float, float] = {}
    for scale in grid[::2]:
        scores[scale] = score(scale)
        if scores[scale] < max(scores.values()) - HOPELESS:
            break
    best = grid.index(max(scores, key=lambda scale: scores[scale]))
    for scale in grid[max(0, best - 1) : best + 2]:
        if scale not in scores:
            scores[scale] = score(scale)
    return dict(sorted(scores.items()))


def _around(grid: Sequence[float], score: Callable[[float], float], near: float) -> dict[float, float]:
    """Return scale -> score of a scale and its neighbours, and on from there as long as it rises."""
    scores: dict[float, float] = {}
    best = None
    while best != near:
        best, place = near, grid.index(near)
        for scale in grid[max(0, place - 1) : place + 2]:
            if scale not in scores:
                scores[scale] = score(scale)
        near = max(scores, key=lambda scale: scores[scale])
    return dict(sorted(scores.items()))
