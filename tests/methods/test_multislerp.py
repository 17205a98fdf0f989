"""Multi-SLERP: directions are averaged, lengths are averaged, whatever cancels."""

import pytest
import torch

from _states import assert_close, assert_equal
from _support import family, state
from submerge.engine import merge_state_dicts
from submerge.errors import RequestError

SMALL = {"matrix": (24, 17), "norm": (37,)}


def test_of_two_equal_norms_it_is_slerp_at_a_half() -> None:
    base, (model,) = family(1, SMALL, size=1.0)
    model = {key: value * base[key].norm() / value.norm() for key, value in model.items()}
    merged = merge_state_dicts([base, model], method="multislerp", weight=0.5)
    assert_close(merged, merge_state_dicts([model], base=base, method="slerp", t=0.5), atol=1e-5)


@pytest.mark.parametrize("based", [False, True])
def test_one_model_is_that_model_whatever_its_weight(based: bool) -> None:
    base, (model,) = family(1, dtype=torch.bfloat16)
    merged = merge_state_dicts(
        [model], base=base if based else None, method="multislerp", weight=0.3, normalize_weights=False
    )
    assert_equal(merged, model)


def test_opposites_are_mixed_straight() -> None:
    model = state(0)
    opposite = {key: -1.7 * value for key, value in model.items()}
    merged = merge_state_dicts([model, opposite], method="multislerp", weight=0.5)
    assert_close(merged, {key: -0.35 * value for key, value in model.items()})


@pytest.mark.parametrize("angle", [3e-3, 0.05])
def test_near_opposites_have_the_mean_length(angle: float) -> None:
    """The length of what is left of their directions is measured, not computed of inner products."""
    x, y = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)).double()
    y = (y - (y @ x) / (x @ x) * x) * x.norm() / y.norm()
    near = {"w": (-x + angle * y).float()}
    merged = merge_state_dicts([{"w": x.float()}, near], method="multislerp", weight=0.5)["w"].double()
    direction = merged / merged.norm()
    assert merged.norm().item() == pytest.approx((x.norm() + near["w"].norm()).item() / 2, rel=1e-4)
    assert (direction @ y / y.norm()).item() == pytest.approx(1, abs=angle)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_an_update_that_is_zero_has_no_direction(eps: float) -> None:
    base, (model,) = family(1, SMALL)
    merged = merge_state_dicts([model, base], base=base, method="multislerp", weight=[0.75, 0.25], eps=eps)
    assert_close(merged, {key: base[key] + 0.75 * (model[key] - base[key]) for key in base})


def test_weights_that_cancel_are_refused_where_they_are_normalised() -> None:
    _, models = family(2, {"w": (4,)})
    with pytest.raises(RequestError, match="sum to zero") as refusal:
        merge_state_dicts(models, method="multislerp", weight=[0.5, -0.5])
    assert "normalize_weights: false" in str(refusal.value)
    merge_state_dicts(models, method="multislerp", weight=[0.5, -0.5], normalize_weights=False)
