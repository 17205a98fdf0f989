"""The linear discriminant: Bayes' rule for two Gaussians, what leaves it as it is, and shrinking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _updates import assert_close, normal, rotation
from submerge.algebra import linear_discriminant

SEEDS = st.integers(0, 10_000)
SIZES = st.tuples(st.integers(2, 5), st.integers(2, 8), st.integers(2, 24))
"""Groups, vectors in a group, and the vectors' length: fewer vectors than numbers, or more."""


def groups(seed: int, count: int, each: int, width: int) -> list[torch.Tensor]:
    spread = normal(seed + 1, width, width)
    return [
        normal(seed + 10 * t, each, width) @ spread + 3 * normal(seed + 7 * t, width) for t in range(count)
    ]


@given(SEEDS, SIZES)
def test_it_is_bayes_rule_with_the_shrunk_covariance(seed: int, sizes: tuple[int, int, int]) -> None:
    own, x = groups(seed, *sizes), normal(seed, 5, sizes[2])
    fitted = linear_discriminant(own)
    assert 0 < fitted.shrinkage <= 1
    means = torch.stack([group.mean(0) for group in own])
    rest = torch.cat([group - group.mean(0) for group in own])
    covariance = rest.T @ rest / (len(rest) - len(own))
    level = covariance.diagonal().mean() * torch.eye(sizes[2], dtype=torch.float64)
    covariance = (1 - fitted.shrinkage) * covariance + fitted.shrinkage * level
    away = x.unsqueeze(1) - means  # [5, T, n]
    logs = -0.5 * (away * torch.linalg.solve(covariance, away.flatten(0, 1).T).T.view_as(away)).sum(-1)
    assert_close(fitted.log_posteriors(x), logs.log_softmax(-1), 1e-7)


@given(SEEDS, SIZES)
def test_rotations_shifts_and_scales_change_nothing(seed: int, sizes: tuple[int, int, int]) -> None:
    own, x = groups(seed, *sizes), normal(seed, 5, sizes[2])
    turn, shift = rotation(seed, sizes[2]), normal(seed + 3, sizes[2])
    found = linear_discriminant([3 * group @ turn + shift for group in own])
    wanted = linear_discriminant(own)
    assert found.shrinkage == pytest.approx(wanted.shrinkage, rel=1e-6)
    assert_close(found.log_posteriors(3 * x @ turn + shift), wanted.log_posteriors(x), 1e-6)


@given(SEEDS, SIZES)
def test_wholly_shrunk_it_is_the_nearest_mean(seed: int, sizes: tuple[int, int, int]) -> None:
    own, x = groups(seed, *sizes), normal(seed, 9, sizes[2])
    means = torch.stack([group.mean(0) for group in own])
    found = linear_discriminant(own, 1.0).log_posteriors(x)
    assert torch.equal(found.argmax(-1), torch.cdist(x, means).argmin(-1))


@given(SEEDS)
def test_both_forms_of_the_inverse_agree(seed: int) -> None:
    own, share = groups(seed, 2, 6, 6), 1e-9
    wide = linear_discriminant([torch.cat([group, torch.zeros(6, 12)], 1) for group in own], share)  # N < n
    narrow = linear_discriminant([group.repeat(5, 1) for group in own], share)
    assert_close(wide.weights[:, :6] / 10, narrow.weights * 5 / 58, 1e-3)  # the scatters over N − T
    assert_close(wide.weights[:, 6:], torch.zeros(2, 12, dtype=torch.float64))


def test_two_gaussians_are_told_apart_as_well_as_they_can_be() -> None:
    deviation, count = torch.tensor([1.0, 10.0], dtype=torch.float64), 4000
    mean = torch.tensor([1.0, 0.0], dtype=torch.float64)
    fit = [normal(seed, count, 2) * deviation + sign * mean for seed, sign in ((1, 1), (2, -1))]
    fitted = linear_discriminant(fit)
    assert fitted.shrinkage < 0.01
    x = normal(3, count, 2) * deviation + mean
    right = (fitted.log_posteriors(x).argmax(-1) == 0).double().mean().item()
    assert right == pytest.approx(0.8413, abs=0.02)  # Φ(1)
    assert linear_discriminant(fit, 1.0).log_posteriors(x)[:, 0].exp().mean() < right


def test_fewer_vectors_are_shrunk_more() -> None:
    spread = torch.linspace(0.1, 5, 40, dtype=torch.float64)
    shares = [
        linear_discriminant([normal(s, n, 40) * spread for s in (1, 2)]).shrinkage for n in (4, 40, 400)
    ]
    assert shares[0] > 0.3
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < 0.1


def test_vectors_that_are_all_alike_have_no_covariance() -> None:
    alike = [torch.full((3, 4), float(t)) for t in (1, 2)]
    with pytest.raises(ValueError, match="all alike"):
        linear_discriminant(alike)
    with pytest.raises(ValueError, match="all alike"):
        linear_discriminant([group + 1e-8 * normal(1, 3, 4) for group in alike])
    one = linear_discriminant([torch.tensor([[1.0, 0]]), torch.tensor([[-1.0, 0.5], [-1, 1]])])
    assert one.log_posteriors(torch.tensor([2.0, 0])).argmax() == 0
