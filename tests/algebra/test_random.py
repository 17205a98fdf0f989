"""The random numbers are a function of key and position, and are uniform."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from submerge.algebra import bernoulli, normal, stream_key, uniform

KEY = stream_key(0, "model.layers.0.weight", 1)
KEYS = st.integers(0, 2**128 - 1)


@given(KEYS, st.integers(0, 2**40), st.lists(st.integers(0, 40), max_size=8))
def test_pieces_are_the_whole(key: int, start: int, lengths: list[int]) -> None:
    at_once = uniform(key, start, sum(lengths))
    at = start
    pieces = [torch.empty(0)]
    for length in lengths:
        pieces.append(uniform(key, at, length))
        at += length
    assert torch.equal(torch.cat(pieces), at_once)


@given(KEYS, st.integers(0, 2**40), st.lists(st.integers(0, 40), max_size=8))
def test_pieces_of_normal_numbers_are_the_whole(key: int, start: int, lengths: list[int]) -> None:
    at_once = normal(key, start, sum(lengths))
    at = start
    for length in lengths:
        piece = normal(key, at, length)
        assert np.array_equal(piece, at_once[at - start : at - start + length])
        at += length


def test_normal_numbers_are_normal() -> None:
    """Means of powers are those of the normal distribution, but for the fourth: that of a sum is 2.9."""
    numbers = normal(KEY, 0, 1 << 18).astype(np.float64)
    moments = [(numbers**power).mean() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 2.9], abs=0.05)
    beyond = (np.abs(numbers) > 2).mean()
    assert beyond == pytest.approx(math.erfc(2 / math.sqrt(2)), abs=0.003)


@given(KEYS, st.integers(0, 2**40), st.lists(st.integers(0, 40), max_size=8), st.floats(0, 1))
def test_pieces_of_bernoulli_draws_are_the_whole(key: int, start: int, lengths: list[int], p: float) -> None:
    at_once = bernoulli(key, start, sum(lengths), p)
    at = start
    pieces = [torch.empty(0, dtype=torch.uint8)]
    for length in lengths:
        pieces.append(bernoulli(key, at, length, p))
        at += length
    assert at_once.dtype == torch.uint8
    assert torch.equal(torch.cat(pieces), at_once)


@given(KEYS, st.floats(0, 1), st.floats(0, 1))
def test_more_is_kept_of_the_same_where_the_probability_is_higher(key: int, p: float, q: float) -> None:
    assert (bernoulli(key, 3, 1000, min(p, q)) <= bernoulli(key, 3, 1000, max(p, q))).all()


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("more", [1 / 256, 1 / 2048, 2**-14])
def test_bernoulli_resolves_small_differences_of_probability(p: float, more: float) -> None:
    n = 1 << 20
    if p + more > 1:
        return
    gained = (bernoulli(KEY, 0, n, p + more) - bernoulli(KEY, 0, n, p)).sum().item()
    assert gained == pytest.approx(n * more, abs=6 * math.sqrt(n * more))


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 32, 4096])
def test_neighbouring_bernoulli_draws_are_uncorrelated(lag: int) -> None:
    n, p = 1 << 20, 0.501
    draws = (bernoulli(KEY, 0, n, p).double() - p) / math.sqrt(p * (1 - p))
    assert abs((draws[lag:] * draws[:-lag]).mean().item()) < 5 / math.sqrt(n)


def test_bernoulli_draws_of_other_keys_are_unrelated() -> None:
    n, p = 1 << 20, 0.3
    ours, theirs = (
        (bernoulli(stream_key(0, "w", t), 0, n, p).double() - p) / math.sqrt(p * (1 - p)) for t in (0, 1)
    )
    assert abs((ours * theirs).mean().item()) < 5 / math.sqrt(n)


def test_what_one_byte_leaves_open_is_decided_without_bias() -> None:
    """Probabilities below 1/256 are decided by further bits alone: over positions and over keys."""
    n, p = 1 << 22, 1 / 1024
    ones = bernoulli(KEY, 0, n, p).sum().item()
    assert ones == pytest.approx(n * p, abs=5 * math.sqrt(n * p))
    keys = [stream_key(seed, "w", 0) for seed in range(3000)]
    first = sum(bernoulli(key, 0, 256, 1 / 512).sum().item() for key in keys)
    assert first == pytest.approx(3000 * 256 / 512, abs=5 * math.sqrt(3000 * 256 / 512))


@pytest.mark.parametrize("probability", [0.0, 2**-33, 1e-3, 0.3, 0.999, 1 - 2**-33, 1.0])
def test_ones_are_as_frequent_as_they_should(probability: float) -> None:
    n = 1 << 20
    ones = bernoulli(KEY, 0, n, probability).double().mean().item()
    assert ones == pytest.approx(probability, abs=5 * math.sqrt(probability * (1 - probability) / n) + 1e-9)


@given(KEYS, st.integers(0, 2**60))
def test_numbers_lie_in_the_half_open_unit_interval(key: int, start: int) -> None:
    drawn = uniform(key, start, 1000)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (1000,)
    assert 0 <= drawn.min() <= drawn.max() < 1
    assert torch.equal(drawn * 2**24, (drawn * 2**24).round()), "multiples of 2⁻²⁴"


def test_moments_are_those_of_the_uniform_distribution() -> None:
    n = 1 << 20
    drawn = uniform(KEY, 0, n).double()
    assert drawn.mean().item() == pytest.approx(1 / 2, abs=5 * math.sqrt(1 / 12 / n))
    assert drawn.square().mean().item() == pytest.approx(1 / 3, abs=5 * math.sqrt(4 / 45 / n))


def test_bins_are_filled_evenly() -> None:
    n, bins = 1 << 20, 256
    counts = torch.bincount((uniform(KEY, 0, n) * bins).long(), minlength=bins).double()
    chi = ((counts - n / bins).square() / (n / bins)).sum().item()
    assert abs(chi - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


def test_neighbours_are_uncorrelated() -> None:
    n = 1 << 20
    drawn = uniform(KEY, 0, n).double() - 0.5
    for lag in (1, 2, 3, 4, 8, 4096):
        correlation = (drawn[lag:] * drawn[:-lag]).mean().item() * 12
        assert abs(correlation) < 5 / math.sqrt(n), f"lag {lag}"


@pytest.mark.parametrize(
    "other", [(1, "w", 0), (0, "v", 0), (0, "w", 1), (-1, "w", 0), (0, "w0", 0), (0, "", 0)]
)
def test_streams_of_other_keys_are_unrelated(other: tuple[int, str, int]) -> None:
    n = 1 << 18
    ours, theirs = uniform(stream_key(0, "w", 0), 0, n).double(), uniform(stream_key(*other), 0, n).double()
    correlation = ((ours - 0.5) * (theirs - 0.5)).mean().item() * 12
    assert abs(correlation) < 5 / math.sqrt(n)
    assert (ours == theirs).sum() < 10


def test_the_parts_of_a_key_cannot_be_confused() -> None:
    keys = {stream_key(s, n, m) for s in (0, 1, 11) for n in ("", "1", "w", "w1", "ü") for m in (0, 1, 11)}
    assert len(keys) == 45
    assert all(0 <= key < 2**128 for key in keys)


def test_the_stream_is_the_same_in_every_release() -> None:
    """A change here changes what `seed` means: every merge with DARE or DELLA would differ."""
    drawn = uniform(stream_key(0, "w", 0), 5, 4) * 2**24
    assert drawn.tolist() == [14648379, 750933, 9830473, 13220657]
