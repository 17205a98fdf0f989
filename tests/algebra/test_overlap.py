"""Principal angles and kept energies, beside their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from submerge.algebra import (
    Dense,
    LowRank,
    RankRule,
    Update,
    Zero,
    kept_energy,
    principal_angles,
    shared_subspace,
)


def basis(rows: int, columns: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    q: torch.Tensor = torch.linalg.qr(x)[0]
    return q


def rotation(size: int, seed: int) -> torch.Tensor:
    return basis(size, size, seed)


@pytest.mark.parametrize("angles", [[0.0, 0.3, 1.2], [1e-9, 1e-5, math.pi / 2 - 1e-9], [math.pi / 2] * 3])
def test_known_angles_come_back_in_any_basis(angles: list[float]) -> None:
    """Also those that a cosine alone, or a sine alone, would lose to rounding."""
    turned, space = rotation(8, 0), torch.tensor(angles, dtype=torch.float64)
    a = turned[:, :3]
    b = a * space.cos() + turned[:, 3:6] * space.sin()
    found = principal_angles(a @ rotation(3, 1), b @ rotation(3, 2))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, space, atol=1e-14, rtol=1e-6)


def test_a_smaller_space_within_a_larger_one_has_no_angle() -> None:
    wide = basis(9, 5, 0)
    assert principal_angles(wide, wide[:, 1:3]).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert principal_angles(wide[:, 1:3], wide).shape == (2,)
    assert principal_angles(wide, wide[:, :0]).shape == (0,)


def test_random_spaces_have_the_stated_mean() -> None:
    cosines = [principal_angles(basis(60, 12, s), basis(60, 6, 100 + s)).cos() for s in range(30)]
    assert float(torch.cat(cosines).square().mean()) == pytest.approx(12 / 60, rel=0.05)


def updates(kind: str) -> list[Update]:
    factors = [(basis(20, r, r), basis(14, r, 10 + r).T * (1 + torch.arange(r)).unsqueeze(1)) for r in (2, 4)]
    low_rank = [LowRank(left.float(), right.float()) for left, right in factors]
    return [*(low_rank if kind == "low-rank" else [Dense(u.dense()) for u in low_rank]), Zero((20, 14))]


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
def test_kept_energy_is_that_of_each_shared_subspace(kind: str) -> None:
    several = updates(kind)
    total = sum(update.norm**2 for update in several)
    kept = kept_energy(several, [6, 1, 3, 3])
    assert kept.ranks == (1, 3, 6)
    for place, k in enumerate(kept.ranks):
        shared = shared_subspace(several, RankRule("int", k))
        inside = [float(shared.core(update).square().sum()) for update in several]
        assert kept.left[place] == pytest.approx(shared.kept_left, abs=1e-6)
        assert kept.right[place] == pytest.approx(shared.kept_right, abs=1e-6)
        assert kept.at(k) == kept.both[place] == pytest.approx(sum(inside) / total, abs=1e-6)
        for t in (0, 1):
            assert kept.at(k, t) == pytest.approx(inside[t] / several[t].norm ** 2, abs=1e-6)
        assert kept.at(k, 2) == 1.0  # nothing of a zero update is lost
    assert kept.at(6) == pytest.approx(1.0)
