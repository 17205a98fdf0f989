"""The methods on second moments hand their options on, and average what has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from _least_squares import make_tasks
from _updates import assert_close, matrix, options
from submerge.algebra import BlockMoment, LowRank, LpmOptions, Zero, merge_least_squares
from submerge.errors import RequestError, WorkError
from submerge.methods import METHODS, TensorSpec

NAMES = ("many", "regmean")
TASKS = make_tasks(0)


def merged(name: str, moments: Any = TASKS.moments, **given: Any) -> torch.Tensor:
    rule = METHODS[name].matrix
    assert rule is not None
    spec = TensorSpec("w", (9, 12), 3, moments=moments)
    return matrix(rule(TASKS.updates, spec, options(name, 3, **given)).update)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("many", {}),
        ("many", {"scale": 3.0, "energy": 0.9, "forget": 0.5, "normalize": "sum"}),
        ("regmean", {"ridge": 0.0, "offdiag": 0.9}),
    ],
)
def test_options_are_those_of_the_least_squares_merge(name: str, given: dict[str, Any]) -> None:
    wanted = merge_least_squares(TASKS.updates, TASKS.moments, LpmOptions(**given))
    assert_close(merged(name, **given), matrix(wanted), 1e-12)


def test_weights_are_factors_on_the_moments() -> None:
    moments = [moment.scaled(w) for moment, w in zip(TASKS.moments, (2.0, 0.0, 0.5), strict=True)]
    wanted = matrix(merge_least_squares(TASKS.updates, moments))
    assert_close(merged("many", weight=[2.0, 0.0, 0.5]), wanted, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_without_moments_updates_are_averaged_by_weights(name: str) -> None:
    found = merged(name, None, weight=[1.0, 2.0, 1.0], scale=2.0)
    wanted = 2 * sum(w * matrix(u) for u, w in zip(TASKS.updates, (0.25, 0.5, 0.25), strict=True))
    assert_close(found, torch.as_tensor(wanted), 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_low_rank_stays_low_rank_and_nothing_gives_nothing(name: str) -> None:
    rule = METHODS[name].matrix
    assert rule is not None
    spec = TensorSpec("w", (9, 12), 3, moments=TASKS.moments)
    assert isinstance(rule(TASKS.updates, spec, options(name, 3)).update, LowRank)
    assert isinstance(rule([Zero((9, 12))] * 3, spec, options(name, 3)).update, Zero)


def test_a_map_that_no_data_reaches_is_told() -> None:
    nothing = [BlockMoment.of(torch.zeros(0, 12))] * 3
    with pytest.raises(WorkError, match="tensor w: no task has inputs here"):
        merged("many", nothing)


def test_options_that_cannot_be_are_refused() -> None:
    method, spec = METHODS["many"], TensorSpec("w", (9, 12), 3)
    with pytest.raises(RequestError, match="all weights are 0"):
        method.check(spec, options("many", 3, weight=[0.0] * 3))
    with pytest.raises(RequestError, match="diag statistics have no eigenpairs"):
        method.check(spec, options("many", 3, energy=0.9, statistics="diag"))
