"""SLERP: its ends, its length, its order."""

import pytest

from _states import assert_close, assert_equal
from _support import family
from submerge.engine import merge_state_dicts


@pytest.mark.parametrize("size", [0.001, 0.1, 3.0], ids=["straight", "narrow", "wide"])
def test_slerp_ends_are_the_inputs(size: float) -> None:
    base, (model,) = family(1, size=size)
    assert_equal(merge_state_dicts([model], base=base, method="slerp", t=0), base)
    assert_equal(merge_state_dicts([model], base=base, method="slerp", t=1), model)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_of_equal_norms_keeps_the_norm(t: float) -> None:
    base, (model,) = family(1, {"w": (50, 30)}, size=1.0)
    model["w"] *= base["w"].norm() / model["w"].norm()
    merged = merge_state_dicts([model], base=base, method="slerp", t=t)["w"]
    assert merged.norm().item() == pytest.approx(base["w"].norm().item(), rel=1e-6)


def test_slerp_begins_at_the_base_wherever_it_is_listed() -> None:
    base, (model,) = family(1)
    assert_close(
        merge_state_dicts([model], base=base, method="slerp", t=0.25),
        merge_state_dicts([base], base=model, method="slerp", t=0.75),
    )
