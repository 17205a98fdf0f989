"""Exponentials and logarithms: right to about a unit of float64, with the same bits everywhere."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _kernels import assert_same, hard_values
from submerge.kernels import exponentials, logarithms

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.sampled_from([0, 1, 200, 4097]))
def test_loop_and_reference_have_the_same_bits(seed: int, n: int) -> None:
    assert_same(exponentials, -np.abs(hard_values(seed, n, np.float64)))
    random = np.random.default_rng(seed)
    assert_same(logarithms, random.uniform(0.5, 2, n) * 2.0 ** random.integers(-300, 300, n))


def test_exponentials() -> None:
    x = -np.concatenate([np.linspace(0, 3, 4001), np.geomspace(1e-300, 707, 4000)])
    result = x.copy()
    exponentials(result)
    wanted = np.array([math.exp(value) for value in x])
    np.testing.assert_allclose(result, wanted, rtol=5e-16)


@pytest.mark.parametrize("value", [-708.5, -1e300, -np.inf, np.nan])
def test_below_the_least_exponential_all_is_the_same(value: float) -> None:
    result = np.array([value])
    exponentials(result)
    assert result[0] == pytest.approx(math.exp(-708), rel=1e-13)


def test_logarithms() -> None:
    x = np.concatenate([np.linspace(0.4, 3, 4001), np.geomspace(1e-300, 1e300, 4001), [1.0]])
    result = x.copy()
    logarithms(result)
    wanted = np.array([math.log(value) for value in x])
    np.testing.assert_allclose(result, wanted, rtol=5e-16, atol=0)
    assert result[-1] == 0
