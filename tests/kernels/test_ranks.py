"""Bounds of ranks hold, and comparisons with them are those of a stable sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _kernels import assert_same, both, hard_values
from submerge.kernels import keep_by_rank, rank
from submerge.kernels._ranks import (
    MANTISSA,
    ROOM,
    bound_ranks,
    compare_at_bounds,
    compare_open,
    settle,
)

SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = st.sampled_from([1, 2, 7, 64, 500])
DTYPES = st.sampled_from([np.float32, np.float64])


def magnitudes(seed: int, n: int, dtype: type) -> np.ndarray:
    """Return hard values, some of them rounded to few bits as updates of 16-bit weights are, as integers."""
    values = hard_values(seed, n, dtype)
    if seed % 2:
        values = values.astype(np.float32).view(np.uint32)
        values = (values & np.uint32(0xFFFF0000)).view(np.float32).astype(dtype)
    return np.abs(values).view(f"u{np.dtype(dtype).itemsize}")


def by_sort(bits: np.ndarray, width: int) -> np.ndarray:
    rows = bits.reshape(-1, width)
    return rows.argsort(1, kind="stable").argsort(1, kind="stable").ravel()


@given(SEEDS, WIDTHS, st.integers(0, 7), DTYPES, st.integers(0, 6))
def test_bounds_hold_and_decide(seed: int, width: int, rows: int, dtype: type, fine: int) -> None:
    bits = magnitudes(seed, width * rows, dtype)
    exact, n = by_sort(bits, width), bits.size
    random = np.random.default_rng(seed)
    words = random.integers(0, 2**32, n, dtype=np.uint32)
    least, step = random.random() * 2**31, random.random() * 2**31 / width
    ranks, low, high, places = (np.empty(n, np.uint32) for _ in range(4))
    rank(bits, width, ranks)
    np.testing.assert_array_equal(ranks, exact)
    shift = int(np.finfo(dtype).nmant) - fine
    (_, (*_, low, high)), (_, (*_, own, same)) = both(bound_ranks, bits, width, shift, 8 << fine, low, high)
    assert (low <= exact).all()
    assert (exact <= high).all()
    assert (own == exact).all()
    assert (same == exact).all()
    keep = np.empty(n, np.uint8)
    (count, loop), (wanted, reference) = both(compare_at_bounds, words, low, high, least, step, keep, places)
    assert count == wanted
    np.testing.assert_array_equal(loop[5], reference[5])
    np.testing.assert_array_equal(loop[6][:count], reference[6][:count])
    assert_same(compare_open, bits, width, words, least, step, loop[5], loop[6][:count])
    keep = loop[5]
    compare_open(bits, width, words, least, step, keep, loop[6][:count])
    np.testing.assert_array_equal(keep, words < least + step * exact)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_equal_magnitudes_are_ranked_by_their_places(value: float) -> None:
    bits = np.full(600, value, np.float32).view(np.uint32)
    low, high, places = np.empty(600, np.uint32), np.empty(600, np.uint32), np.tile(np.arange(300), 2)
    bound_ranks.compiled()(bits, 300, 18, 8 << 5, low, high)
    exact = value != 0.3  # which has other bits than the leading ones
    np.testing.assert_array_equal(low, places if exact else 0)
    np.testing.assert_array_equal(high, places if exact else 299)


@given(SEEDS, st.sampled_from([1, 16, 500, 5000]), st.integers(0, 9), DTYPES, st.booleans())
def test_what_is_kept_is_by_rank(seed: int, width: int, rows: int, dtype: type, alike: bool) -> None:
    """Also where all magnitudes have the same leading bits, so that rows are sorted after all."""
    n, random = width * rows, np.random.default_rng(seed)
    values = hard_values(seed, n, dtype)
    if alike:
        values = (1 + random.integers(0, 2000, n) * np.finfo(dtype).eps).astype(dtype)
    words = random.integers(0, 2**32, n, dtype=np.uint32)
    least, step = random.random() * 2**31, random.random() * 2**31 / width
    keep = np.empty(n, np.uint8)
    keep_by_rank(values, width, words, least, step, keep)
    bits = np.abs(values).view(f"u{values.itemsize}")
    np.testing.assert_array_equal(keep, words < least + step * by_sort(bits, width))
    blocks = np.empty(-(-n // (width * max(1, ROOM // width))), np.uint8)
    mask = bits.dtype.type(2 ** (8 * values.itemsize - 1) - 1)
    arguments = (values.view(bits.dtype), mask, width, MANTISSA[values.itemsize] - 3, 8 << 3)
    (_, loop), _ = both(settle, *arguments, words, least, step, np.empty_like(keep), blocks)
    settled = np.repeat(loop[9] == 0, width * max(1, ROOM // width))[:n]
    np.testing.assert_array_equal(loop[8][settled], keep[settled])
