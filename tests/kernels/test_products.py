"""Inner products and sums of magnitudes are exact to rounding, and have the same bits everywhere."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _kernels import LENGTHS, assert_same, hard_values, runs
from submerge.kernels import add_column_products, dot, gram, sum_magnitudes

SEEDS = st.integers(0, 2**32 - 1)


@given(runs(), SEEDS)
def test_loop_and_reference_have_the_same_bits(values: np.ndarray, seed: int) -> None:
    other = hard_values(seed, values.size, values.dtype.type)
    assert_same(dot, values, other)
    assert_same(sum_magnitudes, values)
    assert_same(gram, np.stack([values, other, values]), np.empty((3, 3)))


@given(runs(), SEEDS, st.sampled_from([1, 3, 64, 70]))
def test_columns(values: np.ndarray, seed: int, width: int) -> None:
    values = values[: values.size // width * width]
    other = hard_values(seed, values.size, values.dtype.type)
    assert_same(add_column_products, np.ones(width), values, other)


@pytest.mark.parametrize("n", [*LENGTHS, 100_000])
def test_sums_are_those_of_exact_arithmetic(n: int) -> None:
    a, b = np.random.default_rng(n).standard_normal((2, n)).astype(np.float32)
    exact = math.fsum(a.astype(float) * b)
    bound = 3e-7 * math.fsum(np.abs(a.astype(float) * b))
    assert dot(a, b) == pytest.approx(exact, abs=bound)
    assert sum_magnitudes(a) == pytest.approx(math.fsum(np.abs(a.astype(float))), rel=3e-7)
