"""Inner products and sums of magnitudes are exact to rounding, and have the same bits everywhere."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _kernels import LENGTHS, assert_same, hard_values, runs
from submerge.kernels import _guarded_sums, sum_squares
from submerge.kernels._products import add_column_products, dot, gram, sum_magnitudes

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


@given(runs(special=False))
def test_guarded_sums_are_exact_wherever_float64_has_them(values: np.ndarray) -> None:
    exact = values.astype(float)
    squares, magnitudes = (math.fsum(x.tolist()) for x in (np.square(exact), np.abs(exact)))
    if values.dtype == np.float32:
        assert sum_squares(values) == pytest.approx(squares, rel=1e-5, abs=0)
        assert _guarded_sums.sum_magnitudes(values) == pytest.approx(magnitudes, rel=1e-5, abs=0)
    rows, out = np.stack([values, values[::-1]]), np.empty((2, 2))
    _guarded_sums.gram(rows, out)
    assert out[0, 0] == sum_squares(values)


def test_guarded_sums_have_the_bits_of_plain_ones_where_these_hold() -> None:
    values = np.random.default_rng(0).standard_normal(9000).astype(np.float32) * np.float32(1e-9)
    assert sum_squares(values) == dot(values, values)
    assert _guarded_sums.sum_magnitudes(values) == sum_magnitudes(values)
    assert sum_squares(np.zeros(9000, np.float32)) == 0
