"""Weighted sums, votes and variances are their formula, and loop and reference have the same bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _kernels import DTYPES, LENGTHS, assert_same, hard_values, runs
from submerge.kernels import (
    MOST_RAWS,
    MOST_ROWS,
    add_rows,
    scale,
    sum_bf16,
    sum_updates_bf16,
    variance,
    vote,
    vote_few,
)

SEEDS = st.integers(0, 2**32 - 1)
FACTORS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.3, 1e-30, 1e30, float("nan"), float("inf")])


def stack(seed: int, count: int, n: int, dtype: type) -> np.ndarray:
    return np.stack([hard_values(seed + t, n, dtype) for t in range(count)])


@given(runs(), SEEDS, FACTORS)
def test_scaled_sums(values: np.ndarray, seed: int, factor: float) -> None:
    assert_same(scale, values, values.dtype.type(factor))


@pytest.mark.parametrize("count", [1, 2, MOST_ROWS])
@given(SEEDS, st.sampled_from(LENGTHS), st.sampled_from(DTYPES), st.data())
def test_sums_of_rows(count: int, seed: int, n: int, dtype: type, data: st.DataObject) -> None:
    total, *rows = stack(seed, count + 1, n, dtype)
    first, *factors = (dtype(data.draw(FACTORS)) for _ in range(count + 1))
    assert_same(add_rows, total, first, tuple(rows), tuple(factors))
    assert_same(variance, np.empty(n, dtype), total, tuple(rows), first)


@pytest.mark.parametrize("count", [1, 2, MOST_RAWS])
@given(SEEDS, st.sampled_from(LENGTHS), st.booleans(), st.booleans(), st.data())
def test_sums_of_bfloat16_values(
    count: int, seed: int, n: int, special: bool, more: bool, data: st.DataObject
) -> None:
    total, *rows = (hard_values(seed + t, n, np.float32, special=special) for t in range(count + 2))
    origin, *raws = ((row.view(np.uint32) >> 16).astype(np.uint16) for row in rows)
    factors = tuple(np.float32(data.draw(FACTORS)) for _ in range(count))
    base = (origin.astype(np.uint32) << 16).view(np.float32)
    assert_same(sum_bf16, total, tuple(raws), factors, more)
    assert_same(sum_updates_bf16, total, base, tuple(raws), factors, more)
    finite = all(np.isfinite(row).all() for row in rows[1:])
    with np.errstate(all="ignore"):
        assert sum_bf16.reference(total, tuple(raws), factors, more) == finite


@pytest.mark.parametrize("count", [2, 3, MOST_ROWS])
@given(
    SEEDS,
    st.sampled_from(LENGTHS),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1e-6]),
    st.booleans(),
)
def test_votes(count: int, seed: int, n: int, dtype: type, least: float, weighted: bool) -> None:
    rows, out = stack(seed, count, n, dtype), np.empty(n, dtype)
    random = np.random.default_rng(seed)
    numbers = [random.choice([-1.0, 0.0, 0.5, 1.0, 1e-7], count).astype(dtype) for _ in range(3)]
    numbers[2] *= weighted
    ends = dtype(least), dtype(1.5)
    assert_same(vote, out, rows, *numbers, *ends)
    ballots, shares, counts = map(tuple, numbers)
    assert_same(vote_few, out, tuple(rows), ballots, shares, counts, *ends)
    assert_same(vote_few, out, tuple(rows), ballots, shares, (), *ends)
    uncounted = np.empty_like(out)
    vote_few(out, tuple(rows), ballots, shares, (), *ends)
    vote(uncounted, rows, *numbers[:2], np.zeros(count, dtype), *ends)
    np.testing.assert_array_equal(out, uncounted)


@pytest.mark.parametrize("count", [1, 3, 11])
@pytest.mark.parametrize("weights", [None, 0.5])
def test_a_vote_is_its_formula(count: int, weights: float | None) -> None:
    rows = np.random.default_rng(0).integers(-3, 4, (count, 3000)).astype(np.float32)
    ones, counts = np.ones(count, np.float32), np.full(count, weights or 0, np.float32)
    out = np.empty(3000, np.float32)
    vote(out, rows, ones, ones, counts, np.float32(0), np.float32(2))
    sign = np.where(rows.sum(0) >= 0, 1, -1)
    agrees = rows * sign > 0
    sums, divisor = (rows * agrees).sum(0), 0.5 * agrees.sum(0) if weights else np.ones(3000)
    np.testing.assert_array_equal(out, (2 * sums / np.where(divisor == 0, 1, divisor)).astype(np.float32))
