"""The null-space ratio of rows: its identities, and an explicit projector as the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.helpers_null_space import normal, projected
from submerge.calibrate import NullSpaceRatio, row_space

SEEDS = st.integers(0, 10_000)
RANKS = st.lists(st.integers(1, 7), min_size=1, max_size=4)
EXACT = 1e-6
"""√ of the floor of ω² in float64."""


def mean(factors: list[torch.Tensor | None], rows: torch.Tensor) -> torch.Tensor:
    ratio = NullSpaceRatio(factors)
    ratio.update(rows)
    return ratio.mean


@given(SEEDS, RANKS)
def test_it_is_that_of_an_explicit_projector(seed: int, ranks: list[int]) -> None:
    factors = [normal(seed + k, r, 12) for k, r in enumerate(ranks)]
    x = normal(seed + 99, 20, 12)
    wanted = torch.stack([projected(a, x).mean() for a in factors])
    assert (mean([*factors], x) - wanted).abs().max() < 1e-12
    assert (mean([*factors], x.float()) - wanted).abs().max() < 1e-5
    gram = [
        1 - ((x @ a.T) @ torch.linalg.inv(a @ a.T) * (x @ a.T)).sum(1) / x.square().sum(1) for a in factors
    ]
    assert (torch.stack([g.sqrt().mean() for g in gram]) - wanted).abs().max() < 1e-8


@given(SEEDS, st.integers(1, 9))
def test_it_is_0_in_the_row_space_and_1_in_the_null_space(seed: int, r: int) -> None:
    a = normal(seed, r, 10)
    inside = normal(seed + 1, 5, r) @ a
    outside = normal(seed + 2, 5, 10)
    outside = outside - outside @ torch.linalg.pinv(a) @ a
    assert mean([a], inside) <= 10 * EXACT
    assert mean([a], outside) >= 1 - EXACT
    assert 0 <= mean([a], normal(seed + 3, 5, 10)) <= 1


@given(SEEDS, st.floats(1e-12, 1e12))
def test_scales_and_mixtures_of_rows_cancel(seed: int, c: float) -> None:
    a, g, x = normal(seed, 3, 10), normal(seed + 1, 3, 3) + 4 * torch.eye(3), normal(seed + 2, 6, 10)
    wanted = mean([a], x)
    for found in (mean([a], c * x), mean([g @ a], x), mean([c * a], x), mean([-a], x)):
        assert (found - wanted).abs() < 1e-9


@given(SEEDS)
def test_with_the_seen_share_it_makes_1(seed: int) -> None:
    a, x = normal(seed, 4, 10), normal(seed + 1, 1, 10)
    seen = (x @ row_space(a)).norm() / x.norm()
    assert float(mean([a], x) ** 2 + seen**2) == pytest.approx(1, abs=1e-12)


def test_unstructured_inputs_have_the_isotropic_level() -> None:
    """E ω² = 1 − r/n, for Gaussian rows; the mean of ω is a little lower than the root."""
    ratio = NullSpaceRatio([normal(0, 16, 768), normal(1, 4, 768)])
    ratio.update(normal(2, 4000, 768))
    assert ratio.isotropic.tolist() == pytest.approx([math.sqrt(1 - 16 / 768), math.sqrt(1 - 4 / 768)])
    assert (ratio.mean - ratio.isotropic).abs().max() < 1e-4


@given(SEEDS)
def test_factors_of_a_deficient_rank(seed: int) -> None:
    a, x = normal(seed, 2, 10), normal(seed + 1, 6, 10)
    wide = torch.cat([a, a[:1] + a[1:], torch.zeros(9, 10, dtype=torch.float64)])  # 12 rows, rank 2
    assert row_space(wide).shape == (10, 2)
    assert (mean([wide], x) - mean([a], x)).abs() < 1e-9
    assert row_space(wide.float()).shape == (10, 2)
    assert mean([torch.zeros(3, 10)], x) == 1


def test_adapters_without_a_null_space_or_a_factor() -> None:
    full = normal(0, 10, 10)
    found = mean([full, normal(1, 2, 10), None], normal(2, 6, 10))
    assert found.isnan().tolist() == [True, False, True]
    for factors in ([full], [None], []):
        with pytest.raises(ValueError, match="no adapter has a null space here"):
            NullSpaceRatio(factors)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not of one width"):
        NullSpaceRatio([normal(0, 2, 10), normal(0, 2, 8)])


def test_parts_of_the_rows_add_up_and_zeros_do_not_count() -> None:
    a, x = normal(0, 3, 10), normal(1, 9, 10)
    ratio = NullSpaceRatio([a])
    assert ratio.mean.isnan().all()
    for rows in (x[:4], torch.zeros(5, 10, dtype=torch.float64), x[4:], x[:0]):
        ratio.update(rows)
    assert ratio.count == 9
    assert (ratio.mean - mean([a], x)).abs() < 1e-12


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_not_left_out(value: float) -> None:
    ratio, x = NullSpaceRatio([normal(0, 3, 10)]), normal(1, 9, 10)
    ratio.update(x[:4])
    assert ratio.is_finite
    x[6, 2] = value
    ratio.update(x[4:])
    assert not ratio.is_finite
    assert ratio.mean.isnan().all()


def test_autocast_and_16_bits_do_not_reach_it() -> None:
    a, x = normal(0, 3, 64), normal(1, 50, 64)
    wanted = mean([a], x)
    with torch.autocast("cpu", torch.bfloat16):
        assert (mean([a], x.float()) - wanted).abs() < 1e-6
    assert (mean([a], x.bfloat16()) - mean([a], x.bfloat16().double())).abs() < 1e-6


def test_gradients_are_those_of_finite_differences() -> None:
    x = normal(1, 4, 8).requires_grad_()
    a = normal(0, 3, 8)
    assert torch.autograd.gradcheck(lambda x: mean([a, None, 2 * a[:2]], x)[[0, 2]], (x,))
    mean([a], (normal(2, 5, 3) @ a).requires_grad_()).backward()  # at 0 the slope of the root is no NaN
