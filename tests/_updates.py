"""Updates of one weight for tests: low-rank ones, their dense and streamed forms, and methods run on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from _matrices import FORMULAS
from submerge.algebra import Dense, LowRank, Streamed, Update, Zero
from submerge.methods import METHODS, Merged, TensorSpec

SHAPES = [(24, 30), (30, 24), (20, 20)]
"""Wide, tall and square: with the ranks below, the stacks do not fill them."""
RANKS = [3, 4, 2]
FILLING = [(7, 6), (6, 8), (5, 30), (30, 5)]
"""Shapes that stacks of those ranks fill on one side or both."""


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return normal numbers; the same ones, rounded, for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def adapters(
    shape: tuple[int, int],
    ranks: Sequence[int] = RANKS,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> list[Update]:
    """Return low-rank updates of these ranks; those of rank 0 are zero."""
    m, n = shape
    return [
        LowRank(normal(seed + 2 * t, m, r, dtype=dtype), normal(seed + 2 * t + 1, r, n, dtype=dtype))
        if r
        else Zero(shape)
        for t, r in enumerate(ranks)
    ]


def full(
    shape: tuple[int, int], count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Update]:
    """Return dense updates of full rank."""
    return [Dense(normal(seed + t, *shape, dtype=dtype)) for t in range(count)]


def matrix(update: Update) -> torch.Tensor:
    """Return an update's entries in float64."""
    return update.dense().double()


def densely(updates: Sequence[Update]) -> list[Update]:
    """Return the same updates as matrices."""
    dtypes = [u.dense().dtype for u in updates if not isinstance(u, Zero)]
    return [Dense(u.dense().to(dtypes[0] if dtypes else torch.float64)) for u in updates]


def streamed(updates: Sequence[Update]) -> list[Update]:
    """Return the same updates as matrices that are read anew each time, into one buffer."""

    def one(whole: torch.Tensor) -> Update:
        return Streamed(
            (whole.shape[0], whole.shape[1]), lambda start, stop: whole[start:stop].clone(), whole.dtype
        )

    return [one(u.dense()) for u in densely(updates)]


def rotation(seed: int, size: int) -> torch.Tensor:
    """Return an orthogonal matrix."""
    return torch.linalg.qr(normal(seed, size, size))[0]


def rotated(updates: Sequence[Update], left: torch.Tensor, right: torch.Tensor) -> list[Update]:
    """Return L Δ Rᵀ for every update."""
    return [
        LowRank(left @ u.left, u.right @ right.T)
        if isinstance(u, LowRank)
        else Zero(u.shape)
        if isinstance(u, Zero)
        else Dense(left @ u.dense() @ right.T)
        for u in updates
    ]


def options(method: str, count: int, **given: Any) -> dict[str, Any]:
    """Return the method's options with these values, one for each model where they are the models' own."""
    found = {}
    for option in METHODS[method].options:
        value = given.pop(option.name, option.default)
        own = option.scope == "model" and not isinstance(value, list)
        found[option.name] = [value] * count if own else value
    assert not given, f"{method} has no {given}"
    return found


def spec(updates: Sequence[Update]) -> TensorSpec:
    return TensorSpec("w", updates[0].shape, len(updates))


def fold(method: str, updates: Sequence[Update], **given: Any) -> Merged:
    """Return what the method makes of the updates."""
    rule = METHODS[method].matrix
    assert rule is not None
    return rule(updates, spec(updates), options(method, len(updates), **given))


def merged(method: str, updates: Sequence[Update], **given: Any) -> torch.Tensor:
    """Return the merged update's entries in float64."""
    return matrix(fold(method, updates, **given).update)


def formula(method: str, updates: Sequence[Update], **given: Any) -> torch.Tensor:
    """Return what the method's formula gives for the updates, from plain SVDs."""
    return FORMULAS[method](torch.stack([matrix(u) for u in updates]), options(method, len(updates), **given))


def assert_close(found: torch.Tensor, wanted: torch.Tensor, share: float = 1e-9) -> None:
    """Assert that ‖found − wanted‖ is at most a share of ‖wanted‖ (of 1 where that is less)."""
    assert found.shape == wanted.shape
    error = (found.double() - wanted.double()).norm().item()
    scale = max(wanted.double().norm().item(), 1.0)
    assert error <= share * scale, f"{error / scale:g} of the norm"
