"""Cat, and the methods whose merged update is a sum with constants: low-rank updates stay low-rank."""

import pytest
import torch

from _support import drive, family, pieces
from _updates import adapters, assert_close, densely, matrix, options
from submerge.algebra import LowRank, weighted_sum
from submerge.engine import merge_state_dicts
from submerge.errors import RequestError
from submerge.methods import METHODS, TensorSpec

WEIGHTS = [1.0, -0.5, 2.0]
CASES = [
    ("cat", {"weight": WEIGHTS, "scale": 0.7}),
    ("cat", {}),
    ("task_arithmetic", {"weight": WEIGHTS, "lambda": 0.7}),
    ("task_arithmetic", {"weight": WEIGHTS, "lambda": 0.7, "normalize": True}),
    ("task_arithmetic", {"weight": [1.0, -1.0, 0.0], "normalize": True}),
    ("linear", {"weight": WEIGHTS}),
    ("linear", {"weight": [0.5, 0.25, 0.25], "normalize": False}),
]


@pytest.mark.parametrize(("method", "given"), CASES)
def test_the_coefficients_are_those_of_the_fold(method: str, given: dict) -> None:
    o = options(method, 3, **given)
    updates = adapters((6, 5), [2, 3, 1], dtype=torch.float32)
    rule = METHODS[method].coefficients
    assert rule is not None
    low = weighted_sum(updates, list(rule(o)))
    assert isinstance(low, LowRank)
    assert low.rank <= 5
    stack = torch.stack([u.dense().flatten() for u in densely(updates)])
    fold = drive(METHODS[method].plan(TensorSpec("w", (6, 5), 3), o), stack, length=30)
    (chunk,) = pieces(stack, [(0, 30)])
    assert_close(matrix(low).flatten(), torch.from_numpy(fold(chunk)), 1e-6)


def test_cat_loses_nothing() -> None:
    updates = adapters((24, 30))
    rule = METHODS["cat"].coefficients
    assert rule is not None
    low = weighted_sum(updates, list(rule(options("cat", 3))))
    assert isinstance(low, LowRank)
    assert low.left.shape == (24, 9)
    assert_close(matrix(low), sum(matrix(u) for u in updates), 1e-14)


def test_cat_is_task_arithmetic() -> None:
    base, models = family(3)
    one = merge_state_dicts(models, base=base, method="cat", weight=WEIGHTS, scale=0.5)
    other = merge_state_dicts(models, base=base, method="task_arithmetic", weight=WEIGHTS, **{"lambda": 0.5})
    assert all(torch.equal(one[key], other[key]) for key in base)


def test_weights_that_would_scale_the_base_are_refused_for_updates() -> None:
    rule = METHODS["linear"].coefficients
    assert rule is not None
    with pytest.raises(RequestError, match=r"sum to 1\.5: the base would be scaled"):
        rule({"weight": [1.0, 0.5], "normalize": False})


@pytest.mark.parametrize("method", ["ties", "dare_linear", "breadcrumbs", "slerp", "sce", "model_stock"])
def test_methods_that_look_at_entries_have_none(method: str) -> None:
    assert METHODS[method].coefficients is None
