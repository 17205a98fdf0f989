"""Which models change an element, and the mean of their updates."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from _kernels import assert_same, hard_values, runs
from submerge.kernels import add_shares, count_changed, count_unique

LEAST = st.sampled_from([0.0, 1e-5, 1.0, 2.0])
SEEDS = st.integers(0, 2**32 - 1)


@given(runs(), LEAST, SEEDS)
def test_loop_and_reference_have_the_same_bits(values: np.ndarray, least: float, seed: int) -> None:
    kind = values.dtype.type
    counts = np.random.default_rng(seed).integers(0, 4, values.size).astype(kind)
    assert_same(count_changed, counts, values, kind(least))
    assert_same(count_unique, values, counts, kind(least))
    total = hard_values(seed, values.size, kind)
    assert_same(add_shares, total, values, counts, kind(least), kind(1.25))


def test_what_is_no_larger_is_no_change_and_nan_is_one() -> None:
    values = np.array([1.0, -1.0, 1.5, -2.0, np.nan, 0.0])
    counts = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    count_changed(counts, values, np.float64(1))
    assert counts.tolist() == [0, 1, 1, 2, 1, 0]
    assert count_unique(values, counts, np.float64(1)) == (3, 2)
    total = np.ones(6)
    add_shares(total, values, counts, np.float64(1), np.float64(10))
    np.testing.assert_array_equal(total, [1, 1, 16, 0, np.nan, 1])
