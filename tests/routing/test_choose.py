"""Which tasks run: z-scores, shares, thresholds and groups."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from submerge.routing import choose, group_means, zscores


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
