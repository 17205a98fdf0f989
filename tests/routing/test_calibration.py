"""The calibration of a router: its weights, with evidence that helps, is chance, or is never wrong."""

from __future__ import annotations

import pytest
import torch

import submerge
from _updates import normal
from submerge.routing import RouterCalibration, fit_calibration

TASKS = torch.arange(3).repeat_interleave(20)
NAMES = ("a", "b", "c")
PLACES = 3 * torch.eye(3, 8, dtype=torch.float64)


def shown(seed: int, apart: float) -> torch.Tensor:
    """Return inputs [60, 8] of three tasks whose means are so far apart."""
    return normal(seed, 60, 8) + apart * PLACES[TASKS]


def known(seed: int, worth: float) -> torch.Tensor:
    """Return scores without data [60, 3], of which the own task's is larger by `worth`."""
    return normal(seed, 60, 3) + worth * torch.nn.functional.one_hot(TASKS, 3)


def fitted(
    inputs: dict[int, torch.Tensor], data_free: torch.Tensor, shrinkage: float | None = None
) -> RouterCalibration:
    return fit_calibration(NAMES, inputs, TASKS, {False: data_free}, {"score": "x"}, shrinkage)


def test_what_is_worth_more_has_the_larger_part_in_the_scores() -> None:
    both = fitted({0: shown(1, 0.5)}, known(2, 1.0)).weights[False]
    assert both.right > both.right_before
    assert min(both.discriminant, both.data_free) > 0.1
    chance = fitted({0: normal(3, 60, 8)}, known(2, 1.0)).weights[False]
    assert chance.discriminant < both.discriminant / 2
    assert chance.right == pytest.approx(chance.right_before, abs=0.1)
    useless = fitted({0: shown(1, 1.0)}, normal(4, 60, 3)).weights[False]
    assert useless.data_free < both.data_free
    assert useless.right > 0.9 > useless.right_before


def test_evidence_that_is_never_wrong_has_finite_weights() -> None:
    weights = fitted({0: shown(1, 20.0)}, known(2, 50.0)).weights[False]
    assert weights.right == weights.right_before == 1
    assert 0 < weights.discriminant < 10
    assert 0 < weights.data_free < 10
    constant = fitted({0: shown(1, 1.0)}, torch.zeros(60, 3)).weights[False]
    assert constant.right > 0.9


def test_sites_have_equal_parts_and_those_without_differences_none() -> None:
    one, other = shown(1, 0.5), shown(5, 0.5)
    two = fitted({0: one, 3: torch.ones(60, 4), 4: other}, known(2, 1.0))
    assert two.sites == (0, 4)
    inputs = {0: one, 4: other}
    found = two.scores(inputs, torch.zeros(60, 3), heads=False)
    alone = [fitted({0: x}, known(2, 1.0)) for x in (one, other)]
    logs = [a.discriminants[0].log_posteriors(x) for a, x in zip(alone, (one, other), strict=True)]
    assert torch.allclose(found, two.weights[False].discriminant * (logs[0] + logs[1]) / 2)
    nearest = fitted({0: one}, known(2, 1.0), 1.0)
    means = torch.stack([one[TASKS == t].mean(0) for t in range(3)])
    scores = nearest.scores({0: one}, torch.zeros(60, 3), heads=False)
    assert torch.equal(scores.argmax(1), torch.cdist(one, means).argmin(1))


def test_what_is_refused() -> None:
    with pytest.raises(submerge.RequestError, match=r"fewer than 4 inputs of c \(2\)"):
        fit_calibration(NAMES, {0: shown(1, 1)[:42]}, TASKS[:42], {False: known(2, 1)[:42]}, {})
    with pytest.raises(submerge.RequestError, match="all alike"):
        fitted({0: PLACES[TASKS]}, known(2, 1.0))
    calibration = fitted({0: shown(1, 1.0)}, known(2, 1.0))
    calibration.check({"score": "x"}, "folder")
    with pytest.raises(submerge.RequestError, match="other settings of the first pass: score"):
        calibration.check({"score": "y"}, "folder")


def test_what_it_says_of_itself() -> None:
    calibration = fitted({0: shown(1, 1.0)}, known(2, 1.0))
    told = calibration.to_dict()
    assert told["inputs"] == dict.fromkeys(NAMES, 20)
    assert told["bytes"] == calibration.nbytes == 3 * (4 * 8 + 8)
    assert told["right"] == calibration.weights[False].right
    assert set(told["weights"]) == {"discriminant", "data_free"}
