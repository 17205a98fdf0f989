"""Comparisons with a random entry keep each as often as its rank says; ranks are those of a stable sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _kernels import assert_same, hard_values
from submerge.kernels import keep_by_rank, rank
from submerge.kernels._ranks import BLOCK, _reciprocal, keep_by_partner

SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([np.float32, np.float64])


def by_sort(magnitudes: np.ndarray, width: int) -> np.ndarray:
    rows = magnitudes.view(f"u{magnitudes.itemsize}").reshape(-1, width)  # NaN is the greatest
    return rows.argsort(1, kind="stable").argsort(1, kind="stable").ravel()


@given(SEEDS, st.sampled_from([1, 2, 7, 64, 500]), st.integers(0, 7), DTYPES)
def test_ranks_are_those_of_a_stable_sort(seed: int, width: int, rows: int, dtype: type) -> None:
    values = hard_values(seed, width * rows, dtype)
    ranks = rank(values, width)
    assert ranks.dtype == np.uint32
    np.testing.assert_array_equal(ranks, by_sort(np.abs(values), width))


@given(SEEDS, st.sampled_from([2, 7, 64, 500, BLOCK + 3, 5000]), st.integers(0, 5), DTYPES, st.booleans())
def test_loop_and_reference_have_the_same_bits(
    seed: int, width: int, rows: int, dtype: type, sure: bool
) -> None:
    random, n = np.random.default_rng(seed), width * rows
    values = hard_values(seed, n, dtype)
    words = random.integers(0, 2**32, n, dtype=np.uint32)
    always = int(random.integers(0, 2**32))
    drawn = 0 if sure else int(random.integers(0, 2**32 - always))
    numbers = map(np.uint64, _reciprocal(drawn, width - 1))
    bits, keep = values.view(f"u{values.itemsize}"), np.empty(n, np.uint8)
    magnitude = bits.dtype.type(2 ** (8 * values.itemsize - 1) - 1)
    limits = np.uint32(always), np.uint32(drawn)
    assert_same(keep_by_partner, bits, magnitude, width, words, *limits, *numbers, keep)


@pytest.mark.parametrize("width", [2, 3, 8, 60])
@pytest.mark.parametrize("kind", ["distinct", "equal", "some equal"])
def test_each_rank_is_kept_by_its_share_of_all_words(width: int, kind: str) -> None:
    """Evenly spaced words in the place of random ones: the shares are exact but for the spacing."""
    random = np.random.default_rng(width)
    row = {
        "distinct": random.standard_normal(width),
        "equal": np.full(width, 0.3),
        "some equal": random.integers(0, 4, width).astype(float),
    }[kind]
    values, count = row.astype(np.float32), 20_000
    words = np.repeat((np.arange(count) * (2**32 // count)).astype(np.uint32), width)
    keep = np.empty(words.size, np.uint8)
    keep_by_rank(np.tile(values, count), width, words, 0.2, 0.7, keep)
    wanted = 0.2 + 0.5 * by_sort(np.abs(values), width) / (width - 1)
    np.testing.assert_allclose(keep.reshape(count, width).mean(0), wanted, atol=width / count)


@given(st.data(), st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1))
def test_words_are_divided_into_equal_parts(data: st.DataObject, size: int, count: int) -> None:
    factor, shift = _reciprocal(size, count)
    assert 0 <= factor < 2**32
    assert 0 <= shift < 64
    word = data.draw(st.integers(0, size - 1))
    part, wanted = word * factor >> shift, word * count // size
    assert wanted - 2 <= part <= wanted < count
