"""Statistics of groups: sums that lose nothing, and the discriminant and the overlap that they give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _updates import assert_close, normal
from submerge.algebra import (
    QUESTION_FLOOR,
    DiscriminantScores,
    GroupStatistics,
    Separation,
    discriminant_of,
    grouped_discriminant,
    k_means,
    linear_discriminant,
)
from submerge.errors import RequestError

SEEDS = st.integers(0, 10_000)


def vectors(seed: int, count: int, each: int, width: int) -> list[torch.Tensor]:
    spread = normal(seed + 1, width, width)
    return [
        normal(seed + 10 * t, each, width) @ spread + 3 * normal(seed + 7 * t, width) for t in range(count)
    ]


def statistics(groups: list[torch.Tensor], rank: int | None = 64) -> list[GroupStatistics]:
    return [GroupStatistics.of(x, x.mean(0, keepdim=True), rank) for x in groups]


@given(SEEDS, st.integers(2, 4), st.integers(2, 30), st.integers(2, 12))
def test_they_give_the_discriminant_of_the_vectors(seed: int, count: int, each: int, width: int) -> None:
    own = vectors(seed, count, each, width)
    found, wanted = discriminant_of(statistics(own)), linear_discriminant(own)
    assert found.shrinkage == pytest.approx(wanted.shrinkage, rel=1e-4)
    x = torch.cat(own)
    assert_close(found.log_posteriors(x), wanted.log_posteriors(x), 1e-4)


@given(SEEDS, st.integers(1, 5), st.integers(6, 30))
def test_what_is_cut_of_a_scatter_is_isotropic(seed: int, rank: int, width: int) -> None:
    """Σ is that of the cut scatter plus its missing trace on the diagonal, whichever matrix is inverted."""
    own = vectors(seed, 3, 14, width)
    cut = statistics(own, rank)
    assert all(one.factor.shape[0] <= rank for one in cut)
    found = discriminant_of(cut)
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for one in cut:
        f = one.factor.double()
        rest = float(one.moments[0]) - float(f.square().sum())
        scatter += f.T @ f + rest / width * torch.eye(width, dtype=torch.float64)
    covariance = scatter / (42 - 3)
    level = covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    covariance = (1 - found.shrinkage) * covariance + found.shrinkage * level
    means = torch.stack([x.mean(0) for x in own])
    wanted = torch.linalg.solve(covariance, (means - means.mean(0)).T).T
    assert_close(found.weights, wanted, 1e-5)


@given(SEEDS)
def test_clusters_are_a_mixture_with_priors_by_size(seed: int) -> None:
    x, y = vectors(seed, 2, 12, 3)
    means, sizes = k_means(x, 3)
    one = GroupStatistics.of(x, means)
    assert one.sizes.tolist() == sizes.tolist()
    rows = grouped_discriminant([[one], [GroupStatistics.of(y, y.mean(0, keepdim=True))]])
    assert [len(part) for part in rows] == [len(means), 1]
    scores = DiscriminantScores(rows).scores(x)
    each = x @ rows[0][:, :-1].T.double() + rows[0][:, -1].double()
    assert_close(scores[:, 0], each.logsumexp(1), 1e-9)


def test_tasks_of_one_group_count_together() -> None:
    own = statistics(vectors(1, 3, 20, 4))
    apart = DiscriminantScores(grouped_discriminant([[task] for task in own]))
    joined = DiscriminantScores(grouped_discriminant([own[:2], own[2:]]))
    x = torch.cat(vectors(2, 2, 5, 4))
    wanted = apart.scores(x)
    assert_close(joined.scores(x)[:, 0], wanted[:, :2].logsumexp(1), 1e-9)
    with pytest.raises(RequestError, match="vectors of 3 numbers, and a discriminant of 4"):
        apart.scores(torch.zeros(1, 3))
    with pytest.raises(RequestError, match="NaN or Inf"):
        apart.scores(torch.full((1, 4), torch.nan))


def test_tensors_come_back_where_they_fit() -> None:
    (own,) = statistics(vectors(3, 1, 9, 4))
    tensors = own.tensors("images")
    assert set(tensors) == {"images.sizes", "images.factor", "images.moments"}
    assert own.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    again = GroupStatistics.from_tensors(own.means, tensors, "images")
    assert again is not None
    assert torch.equal(again.factor, own.factor)
    assert GroupStatistics.from_tensors(own.means, {}, "images") is None
    assert GroupStatistics.from_tensors(own.means[:, :3], tensors, "images") is None
    assert GroupStatistics.from_tensors(own.means.repeat(2, 1), tensors, "images") is None


def test_alike_vectors_have_no_scatter_and_a_floor_bounds_the_evidence() -> None:
    asked = [torch.ones(5, 3) * 2**k for k in range(2)]
    with pytest.raises(ValueError, match="all alike"):
        discriminant_of(statistics(asked))
    bounded = discriminant_of(statistics(asked), floor=QUESTION_FLOOR)
    odds = bounded.log_posteriors(asked[0][:1])
    assert float(odds[0, 0] - odds[0, 1]) == pytest.approx(0.5 / QUESTION_FLOOR)
    nothing = discriminant_of(statistics(asked[:1] * 2), floor=QUESTION_FLOOR)
    assert not nothing.weights.any()


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.8, 1.0), (1.0, 0.35, 0.75), (9.0, 0.0, 1e-3)])
def test_overlap_is_the_share_that_the_densities_have_in_common(
    shift: float, low: float, high: float
) -> None:
    """Of N(0, I) and N(s e_1, I) it is 2 Φ(−s/2): 1, 0.62, and about 0."""
    groups = [normal(k, 200, 5) for k in range(3)]
    groups[1][:, 0] += shift
    groups[2][:, 1] += 50
    overlaps = Separation.of(statistics(groups)).overlaps()
    assert low <= overlaps[0, 1] <= high
    assert overlaps[0, 2] < 1e-6
    assert_close(overlaps, overlaps.T, 1e-9)


def test_the_same_vectors_overlap_wholly_and_questions_may_tell_them_apart() -> None:
    x, q = normal(1, 30, 6), normal(2, 2, 4)
    images = Separation.of(statistics([x, x]))
    assert images.overlaps().tolist() == [[1, 1], [1, 1]]
    asked = statistics([row.expand(30, 4) for row in q])
    both = images + Separation.of(asked, floor=QUESTION_FLOOR)
    assert both.overlaps()[0, 1] < 1e-3
    same = images + Separation.of(asked[:1] * 2, floor=QUESTION_FLOOR)
    assert same.overlaps()[0, 1] == 1


def test_kinds_of_vectors_with_unlike_numbers_of_means_add() -> None:
    x, y = vectors(5, 2, 24, 4)
    clustered = [GroupStatistics.of(x, k_means(x, 3)[0]), GroupStatistics.of(y, y.mean(0, keepdim=True))]
    asked = statistics([row.expand(24, 4) for row in normal(2, 2, 4)])
    images, questions = Separation.of(clustered), Separation.of(asked, floor=QUESTION_FLOOR)
    for both in (images + questions, questions + images):
        assert both.overlaps().shape == (2, 2)
        assert (both.overlaps() <= images.overlaps() + 1e-12).all()
