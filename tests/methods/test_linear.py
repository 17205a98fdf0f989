"""Model soups: shares of models, and weights that cancel."""

import pytest

from _states import assert_close, assert_equal
from _support import family
from submerge.engine import merge_state_dicts
from submerge.errors import RequestError


def test_soup_is_task_arithmetic_of_one_over_t() -> None:
    base, models = family(4)
    soup = merge_state_dicts(models, method="linear", weight=0.25)
    assert_close(soup, merge_state_dicts(models, base=base, method="task_arithmetic", weight=0.25))
    scaled = merge_state_dicts(models, base=base, method="task_arithmetic", weight=1, **{"lambda": 0.25})
    assert_close(soup, scaled)


def test_a_model_of_weight_one_among_zeros_comes_back_exactly() -> None:
    _, models = family(3)
    assert_equal(merge_state_dicts(models, method="linear", weight=[0, 1, 0]), models[1])


@pytest.mark.parametrize("weight", [[1.0, -1.0, 0.0], [0.1, 0.2, -0.3], [1e-9, 2e-9, -3e-9]])
def test_weights_that_cancel_are_refused_whatever_their_rounding(weight: list[float]) -> None:
    _, models = family(3, {"w": (4,)})
    with pytest.raises(RequestError, match="sum to zero"):
        merge_state_dicts(models, method="linear", weight=weight)
