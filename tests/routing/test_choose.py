"""Which tasks run: z-scores, shares, thresholds and groups."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from submerge.routing import choose, combined, complete_evidence, group_means, zscores
from submerge.routing._choose import joint_zscores, log_evidence


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-5, 5))
def test_a_choice_does_not_change_with_the_scale_of_residuals(r: list[float], a: float, b: float) -> None:
    one = torch.tensor([r], dtype=torch.float64)
    if one.std() < 0.01:
        return
    first, second = zscores(one), zscores(a * one + b)
    assert (first - second).abs().max() < 1e-2
    options = {"select": "threshold", "threshold": 0.2, "most": 3, "temperature": 1.0}
    margins = (first.softmax(-1) - 0.2).abs().min()
    if margins > 1e-2:
        assert choose(first, **options).tasks == choose(second, **options).tasks  # type: ignore[arg-type]


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_two_tasks_always_have_the_same_shares(a: float, b: float) -> None:
    if abs(a - b) < 0.05:
        return
    shares = zscores(torch.tensor([[a, b]], dtype=torch.float64)).softmax(-1)
    assert float(shares.max()) == pytest.approx(1 / (1 + math.exp(-math.sqrt(2))), abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "tasks"),
    [
        ([[1.0, 1.0, 1.0]], (0, 1, 2)),  # all alike: a third each
        ([[0.0] * 8], (0,)),  # an eighth each: nobody, so the first
        ([[5.0, 0.0, 0.0]], (0,)),
        ([[0.0, 1.0, 1.0, -9.0]], (1, 2)),
    ],
)
def test_ties(scores: list[list[float]], tasks: tuple[int, ...]) -> None:
    found = choose(torch.tensor(scores), select="threshold", threshold=0.2, most=3, temperature=1.0)
    assert found.tasks == [tasks]


def test_one_task_has_no_deviation() -> None:
    assert zscores(torch.tensor([[3.0]])).tolist() == [[0.0]]


def test_maps_on_one_scale_rank_tasks_as_their_mean_does() -> None:
    """And where all maps say the same, the mean has the variance of z-scores."""
    r = (
        torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 0, 5)[:, None, None]
    )
    mean = joint_zscores(r).mean(0)
    assert torch.equal(mean.argsort(1), (-r.mean(0)).argsort(1))
    assert (mean.var(1) < 1).all()
    alike = r[:1].expand(5, -1, -1)
    assert torch.allclose(joint_zscores(alike), zscores(alike), atol=1e-4)
    assert joint_zscores(torch.ones(2, 3, 1)).tolist() == [[[0.0]] * 3] * 2


def test_at_most_k_tasks_run() -> None:
    found = choose(torch.zeros(1, 4), select="threshold", threshold=0.2, most=2, temperature=1.0)
    assert found.tasks == [(0, 1)]


def test_weighted_runs_all_that_are_above_the_threshold() -> None:
    options = {"threshold": 0.2, "most": None, "temperature": 1.0}
    assert choose(torch.zeros(1, 4), select="weighted", **options).tasks == [(0, 1, 2, 3)]  # type: ignore[arg-type]
    assert choose(torch.zeros(1, 8), select="weighted", **options).tasks == [(0,)]  # type: ignore[arg-type]


def test_groups_share_their_mean() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0]])
    assert group_means(scores, torch.tensor([0, 0, 1])).tolist() == [[0.5, 1.5], [0.5, 1.5], [5.0, 5.0]]
    assert group_means(scores, torch.arange(3)).tolist() == scores.tolist(), "groups of one change nothing"


# Evidence


def test_sites_that_contradict_each_other_leave_the_choice_to_other_evidence() -> None:
    agreed = zscores(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64))
    other = torch.tensor([[0.0, 0.0, 5.0]])
    assert torch.equal(combined(agreed, [], 24.0), agreed), "without other evidence they are as they were"
    assert combined(agreed, [other], 24.0).argmax() == 0, "a deviation that all agree on is worth 24 nats"
    assert combined(0.1 * agreed, [other], 24.0).argmax() == 2
    found = combined(agreed, [other, other], 24.0)
    wanted = 24 * agreed.var(-1) * agreed + 2 * other
    torch.testing.assert_close(found, wanted)


def test_head_evidence_is_the_log_sum_of_exponentials() -> None:
    inf = torch.inf
    logits = torch.tensor([[1.0, 2.0, -inf, 0.0, 1.0, 3.0]])  # heads of two and three classes
    found = log_evidence(logits, [2, 3])
    wanted = torch.tensor([[1.0, 2.0]]).double().logsumexp(-1), torch.tensor([[0.0, 1.0, 3.0]]).double()
    torch.testing.assert_close(found, torch.stack([wanted[0], wanted[1].logsumexp(-1)], 1))


def test_a_regression_head_gets_half_a_deviation_more_than_the_mean() -> None:
    evidence = torch.tensor([[1.0, 9.0, 3.0]])
    found = complete_evidence(evidence, torch.tensor([True, False, True]))
    assert found.tolist() == [[1.0, 2.5, 3.0]]
    assert complete_evidence(evidence, torch.zeros(3, dtype=torch.bool)).eq(0).all()
