"""The Karcher mean of models whose mean is known."""

from _states import assert_close, assert_equal
from _support import family, state
from submerge.engine import merge_state_dicts

SMALL = {"matrix": (24, 17), "norm": (37,), "scalar": (), "conv": (4, 3, 2, 5)}


def test_karcher_of_two_equal_norms_is_slerp_at_a_half() -> None:
    base, (model,) = family(1, SMALL, size=1.0)
    model = {key: value * base[key].norm() / value.norm() for key, value in model.items()}
    model["scalar"] = base["scalar"]
    karcher = merge_state_dicts([base, model], method="karcher", max_iter=100, tol=1e-12)
    assert_close(karcher, merge_state_dicts([model], base=base, method="slerp", t=0.5), atol=1e-5)


def test_karcher_counts_the_base_as_a_model() -> None:
    base, models = family(2)
    assert_equal(
        merge_state_dicts(models, base=base, method="karcher"),
        merge_state_dicts([base, *models], method="karcher"),
    )


def test_karcher_of_one_model_is_that_model() -> None:
    model = state(0)
    assert_equal(merge_state_dicts([model], method="karcher"), model)
