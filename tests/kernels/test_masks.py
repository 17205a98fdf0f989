"""Masks by magnitude, and counts around a bracket."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _kernels import assert_bits, assert_same, both, runs
from submerge.kernels import clip, count_above, count_around, keep_between, keep_where

ENDS = st.one_of(st.sampled_from([0.0, 1.0, 2.0, 1e-45, float("inf"), -1.0]), st.floats(0, 4, width=32))


@given(runs(), ENDS, ENDS, st.integers(0, 2**32 - 1))
def test_loop_and_reference_have_the_same_bits(
    values: np.ndarray, low: float, high: float, seed: int
) -> None:
    kind = values.dtype.type
    keep = np.random.default_rng(seed).integers(0, 2, values.size, dtype=np.uint8)
    assert_same(keep_between, values, kind(low), kind(high))
    assert_same(keep_where, values, keep)
    assert_same(count_above, values, kind(low))
    assert_same(clip, values, kind(abs(low)))


@given(runs(special=False), ENDS, ENDS, st.booleans())
def test_counts_around_a_bracket(values: np.ndarray, one: float, other: float, magnitudes: bool) -> None:
    lo, hi = sorted(map(values.dtype.type, (one, other)))
    inside = np.empty(values.size, values.dtype)
    (counts, loop), (wanted, reference) = both(count_around, values, lo, hi, inside, magnitudes)
    values = np.abs(values) if magnitudes else values
    assert (
        counts
        == wanted
        == tuple((values > hi, values >= hi, values > lo, values >= lo)[k].sum() for k in range(4))
    )
    collected = max(0, counts[2] - counts[1])
    assert_bits(loop[3][:collected], reference[3][:collected])
    np.testing.assert_array_equal(loop[3][:collected], values[(values > lo) & (values < hi)])


@pytest.mark.parametrize(
    ("value", "low", "high", "wanted"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (-1.0, 1.0, 1.0, -1.0),
        (0.5, 0.75, 2.0, 0.0),
        (-3.0, 0.75, 2.0, -0.0),
        (np.nan, 0.75, 2.0, np.nan),
        (np.inf, 0.75, np.inf, np.inf),
        (np.inf, 0.75, 2.0, np.nan),
        (1e-45, 0.0, 2.0, 1e-45),
    ],
)
def test_which_are_kept(value: float, low: float, high: float, wanted: float) -> None:
    values = np.full(1, value, np.float32)
    with np.errstate(invalid="ignore"):
        keep_between(values, np.float32(low), np.float32(high))
    np.testing.assert_array_equal(values, np.full(1, wanted, np.float32))
