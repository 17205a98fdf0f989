"""Random words are those of the reference, wherever a run begins, and pass tests of randomness."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _kernels import assert_same, runs
from submerge.algebra import random_words, stream_key
from submerge.kernels import keep_random, masked_norms
from submerge.kernels import random_words as kernel

WORDS = st.integers(0, 2**32 - 1).map(np.uint32)
KEYS = st.tuples(WORDS, WORDS, WORDS)
N = 1 << 20


def words(seed: int = 0, name: str = "w", model: int = 0, start: int = 0, n: int = N) -> np.ndarray:
    out = np.empty(n, np.uint32)
    random_words(stream_key(seed, name, model), start, out)
    return out


@given(KEYS, WORDS, st.integers(0, 300))
def test_words_of_loop_and_reference(key: tuple, first: np.uint32, n: int) -> None:
    assert_same(kernel, np.empty(n, np.uint32), first, key)


@given(runs(), KEYS, WORDS, WORDS, st.sampled_from([1.0, 2.5]))
def test_masks_of_loop_and_reference(
    values: np.ndarray, key: tuple, first: np.uint32, threshold: np.uint32, factor: float
) -> None:
    assert_same(keep_random, values, first, key, threshold, values.dtype.type(factor))
    assert_same(masked_norms, values, first, key, threshold)


@pytest.mark.parametrize("block", [1, 2, 2**31])
def test_positions_of_64_bits_go_on_where_32_bits_end(block: int) -> None:
    around = words(start=block * 2**32 - 1000, n=2000)
    assert (around[:1000] == words(start=block * 2**32 - 1000, n=1000)).all()
    assert (around[1000:] == words(start=block * 2**32, n=1000)).all()
    assert (around[1000:] != words(start=0, n=1000)).mean() > 0.99, "another block has another key"


def test_a_block_of_positions_is_permuted() -> None:
    assert len(np.unique(words())) == N


# --- randomness: deviations in standard deviations, of 2²⁰ words each ---------------------------------------

STARTS = (0, 12345, 2**32 - N // 2, 7 * 2**33 + 1)
LAGS = (1, 2, 3, 4, 16, 64, 256, 768, 1000, 1024, 2048, 4096, 5632, 65536)
BOUND = 5.0


def deviation(cells: np.ndarray, count: int) -> float:
    """Return how far χ² of the cells that are hit is from its mean."""
    hits = np.bincount(cells, minlength=count)
    chi = ((hits - len(cells) / count) ** 2).sum() * count / len(cells)
    return abs(chi - (count - 1)) / math.sqrt(2 * (count - 1))


@pytest.mark.parametrize("start", STARTS)
def test_bits_and_bytes_are_balanced(start: int) -> None:
    drawn = words(start=start)
    for bit in range(32):
        ones = (drawn >> np.uint32(bit) & np.uint32(1)).mean()
        assert abs(ones - 0.5) * 2 * math.sqrt(N) < BOUND, f"bit {bit}"
    for shift in (0, 8, 16, 24):
        assert deviation(drawn >> np.uint32(shift) & np.uint32(255), 256) < BOUND, f"byte {shift // 8}"


@pytest.mark.parametrize("shift", [0, 11, 24])
def test_bytes_at_a_distance_are_independent(shift: int) -> None:
    drawn = (words(seed=3) >> np.uint32(shift)).astype(np.int64) & 255
    for lag in LAGS:
        assert deviation(drawn[lag:] * 256 + drawn[:-lag], 1 << 16) < BOUND, f"lag {lag}"


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "v"}, {"model": 1}, {"start": 2**32}, {"start": 1}])
def test_other_streams_are_independent(other: dict) -> None:
    one, two = words().astype(np.int64) >> 24, words(**other).astype(np.int64) >> 24
    assert deviation(one * 256 + two, 1 << 16) < BOUND


def test_four_words_in_a_row_are_independent() -> None:
    drawn = words(seed=5).astype(np.int64) >> 28
    assert deviation(drawn[:-3] + 16 * drawn[1:-2] + 256 * drawn[2:-1] + 4096 * drawn[3:], 1 << 16) < BOUND


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_counts_of_ones_in_rows_and_columns_have_the_binomial_variance(p: float) -> None:
    ones = (words(seed=7) < p * 2**32).reshape(512, 2048)
    for axis, n in ((0, 512), (1, 2048)):
        counts = ones.sum(axis)
        share = counts.var() / (n * p * (1 - p))
        assert abs(share - 1) < BOUND * math.sqrt(2 / len(counts))


def test_a_change_of_one_bit_of_the_position_changes_half_of_the_bits() -> None:
    drawn, places = words(seed=9), np.arange(N)
    for bit in range(20):
        changed = np.bitwise_count(drawn ^ drawn[places ^ (1 << bit)])
        assert abs(changed.mean() - 16) < BOUND * math.sqrt(8 / (N / 2)), f"bit {bit}"
