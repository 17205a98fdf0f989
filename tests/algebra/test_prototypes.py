"""Prototypes and k-means: the identities P2, P3 and P6 of MAny's projectors, and edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from submerge.algebra import Prototypes, k_means
from submerge.errors import RequestError

SEEDS = st.integers(0, 2**31)
GROUPS = st.integers(1, 6)


def drawn(seed: int, count: int, width: int = 7) -> tuple[Prototypes, torch.Tensor]:
    """Return prototypes of some groups, of 1 to 3 each, and vectors [5, width]."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 4, (count,), generator=generator).tolist()
    means = [torch.randn(m, width, generator=generator, dtype=torch.float64) for m in sizes]
    return Prototypes(means), torch.randn(5, width, generator=generator, dtype=torch.float64)


@given(SEEDS, GROUPS, st.booleans(), st.floats(0, 10), st.none() | st.integers(1, 6))
def test_weights_sum_to_one_and_follow_a_permutation(seed, count, centred, temperature, top):
    groups, v = drawn(seed, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    rules = {"temperature": temperature, "centred": centred, "top": top}
    weights = groups.weights(v, **rules)
    permuted = Prototypes([groups.means[k] for k in order]).weights(v, **rules)
    assert weights.shape == (5, count)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(5).double())
    if temperature > 1e-3:  # else the order of a sum may decide between equals
        torch.testing.assert_close(permuted, weights[:, order], rtol=1e-6, atol=1e-9)


@given(SEEDS, GROUPS, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_scale_does_not_count(seed, count, of_vectors, of_prototypes):
    groups, v = drawn(seed, count)
    rescaled = Prototypes([mean * of_prototypes for mean in groups.means])
    plain = groups.similarity(v, centred=False)
    torch.testing.assert_close(rescaled.similarity(v * of_vectors, centred=False), plain)
    together = rescaled.similarity(v * of_prototypes, centred=True)
    torch.testing.assert_close(together, groups.similarity(v, centred=True))


@given(SEEDS, GROUPS, st.booleans())
def test_limits_of_the_temperature(seed, count, centred):
    groups, v = drawn(seed, count)
    nearest = torch.nn.functional.one_hot(groups.similarity(v, centred=centred).argmax(1), count).double()
    for temperature in (0.0, 1e-300, 5e-324):
        torch.testing.assert_close(groups.weights(v, temperature=temperature, centred=centred), nearest)
    for temperature in (1e12, torch.inf):
        weights = groups.weights(v, temperature=temperature, centred=centred)
        torch.testing.assert_close(weights, torch.full((5, count), 1 / count).double())


@given(SEEDS, st.integers(2, 6), st.integers(1, 6))
def test_top_keeps_the_largest_and_their_proportions(seed, count, top):
    groups, v = drawn(seed, count)
    of_all = groups.weights(v, temperature=0.3, centred=True)
    kept = groups.weights(v, temperature=0.3, centred=True, top=top)
    assert ((kept > 0).sum(1) == min(top, count)).all()
    expected = of_all * (of_all >= of_all.topk(min(top, count)).values[:, -1:])
    torch.testing.assert_close(kept, expected / expected.sum(1, keepdim=True))


@given(SEEDS, st.floats(0, 10), st.booleans())
def test_one_group_has_exactly_all(seed, temperature, centred):
    groups, v = drawn(seed, 1)
    v[0] = 0
    assert groups.weights(v, temperature=temperature, centred=centred).eq(1).all()


@given(SEEDS, GROUPS, st.booleans())
def test_a_vector_alone_gets_what_it_gets_in_a_batch(seed, count, centred):
    groups, v = drawn(seed, count)
    alone = torch.cat([groups.weights(row[None].float(), temperature=0.01, centred=centred) for row in v])
    torch.testing.assert_close(
        alone, groups.weights(v.float(), temperature=0.01, centred=centred), rtol=1e-9, atol=1e-12
    )


def test_equally_near_groups_have_equal_weights():
    same = torch.tensor([[0.1, 0.7, 0.3]])
    for centred in (False, True):
        groups = Prototypes([same, same.clone(), same.clone()])
        for temperature in (0.0, 1e-12, 0.1):
            for top in (None, 1, 2):
                weights = groups.weights(torch.rand(2, 3), temperature=temperature, centred=centred, top=top)
                torch.testing.assert_close(weights, torch.full((2, 3), 1 / 3).double())


def test_zeros_are_as_far_from_all():
    groups = Prototypes([torch.eye(3)[0], torch.zeros(3), torch.eye(3)[2]])
    assert groups.similarity(torch.zeros(1, 3), centred=False).tolist() == [[0.0, 0.0, 0.0]]
    assert groups.similarity(torch.eye(3)[:1], centred=False).tolist() == [[1.0, 0.0, 0.0]]


def test_the_nearest_of_a_groups_prototypes_counts():
    groups = Prototypes([torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0]])])
    assert groups.similarity(torch.tensor([[0.0, 3.0]]), centred=False)[0, 0] == 1


@pytest.mark.parametrize(
    "means",
    [
        [],
        [torch.tensor([1.0, torch.nan])],
        [torch.tensor([[1.0, torch.inf]])],
        [torch.zeros(2), torch.zeros(3)],
        [torch.zeros(0, 2)],
        [torch.zeros(1, 2, 2)],
    ],
)
def test_prototypes_that_are_none(means):
    with pytest.raises(RequestError):
        Prototypes(means)


@pytest.mark.parametrize("v", [torch.tensor([[torch.nan, 1.0]]), torch.ones(1, 3)])
def test_vectors_that_cannot_be_compared(v):
    groups = Prototypes([torch.ones(2), torch.zeros(2)])
    with pytest.raises(RequestError, match=r"NaN|numbers"):
        groups.weights(v, temperature=0.1, centred=True)


@given(SEEDS, st.integers(1, 40), st.integers(1, 40))
def test_one_mean_is_that_of_the_batch_and_shards_add(seed, first, second):
    x = torch.randn(first + second, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    means, counts = k_means(x, 1)
    torch.testing.assert_close(means, x.mean(0, keepdim=True))
    assert counts.tolist() == [len(x)]
    shards = [k_means(part, 1) for part in x.split([first, second])]
    total = sum(mean * count for mean, count in shards) / (first + second)
    torch.testing.assert_close(total, means)


@given(SEEDS, st.integers(1, 30), st.integers(1, 8), st.integers(1, 30))
def test_clusters_are_of_all_vectors_and_near_to_them(seed, size, m, kinds):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(kinds, 4, generator=generator)
    x = points[torch.randint(kinds, (size,), generator=generator)]
    means, counts = k_means(x, m)
    again = k_means(x, m)
    assert torch.equal(means, again[0])
    assert 1 <= len(means) <= min(m, len(x.unique(dim=0)))
    assert counts.sum() == size
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)
    own = torch.cdist(x, means).argmin(1)
    spread = (x - means[own]).square().sum()
    assert spread <= (x - x.mean(0)).square().sum() * (1 + 1e-5)


def test_clusters_that_lie_apart_are_found():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.cat([centre + 0.1 * torch.randn(n, 2) for centre, n in zip(centres, (9, 5, 7), strict=True)])
    means, counts = k_means(x[torch.randperm(21)], 3)
    assert counts.tolist() == [9, 7, 5]
    torch.testing.assert_close(means, centres[[0, 2, 1]], atol=0.3, rtol=0)
