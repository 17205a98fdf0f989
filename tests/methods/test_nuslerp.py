"""NuSLERP of equal models, of opposites, and row by row."""

import pytest
import torch

from _states import assert_close, assert_equal
from _support import family, state
from submerge.engine import merge_state_dicts


@pytest.mark.parametrize(
    "options", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}]
)
@pytest.mark.parametrize("has_base", [True, False])
def test_nuslerp_of_equal_models_is_that_model(options: dict, has_base: bool) -> None:
    base, (model,) = family(1)
    merged = merge_state_dicts(
        [model] * 2, base=base if has_base else None, method="nuslerp", weight=[0.7, 0.3], **options
    )
    assert_close(merged, model)


@pytest.mark.parametrize("method", ["karcher", "nuslerp"])
@pytest.mark.parametrize("seed", range(8))
def test_opposite_models_give_nothing_longer_than_they_are(method: str, seed: int) -> None:
    """The arc between opposites is not defined; rounding must not choose a result for us."""
    model = state(seed, {"w": (50, 30)})["w"]
    options = {"weight": [0.7, 0.3]} if method == "nuslerp" else {}
    merged = merge_state_dicts([{"w": model}, {"w": -model}], method=method, **options)["w"]
    torch.testing.assert_close(merged, model * (0.4 if method == "nuslerp" else 1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_opposite_rows_are_mixed_in_a_straight_line(row_wise: bool, seed: int) -> None:
    model = state(seed, {"w": (50, 30)})["w"]
    options = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise, "weight": [0.7, 0.3]}
    merged = merge_state_dicts([{"w": model}, {"w": -model}], method="nuslerp", **options)["w"]
    torch.testing.assert_close(merged, 0.4 * model, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", [[1, 1], [0, 0], [3, 3], [1, -1]])
def test_nuslerp_is_halfway_where_weights_are_equal_or_cancel(weight: list[float]) -> None:
    _, models = family(2)
    half = merge_state_dicts(models, method="nuslerp", weight=[0.5, 0.5])
    assert_equal(merge_state_dicts(models, method="nuslerp", weight=weight), half)


@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_keeps_the_length_of_every_row(row_wise: bool) -> None:
    a, b = (state(seed, {"w": (6, 40)})["w"] for seed in (0, 1))
    dim = 0 if row_wise else 1
    a, b = (v / v.norm(dim=dim, keepdim=True) for v in (a, b))
    options = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
    merged = merge_state_dicts([{"w": a}, {"w": b}], method="nuslerp", weight=[0.7, 0.3], **options)["w"]
    torch.testing.assert_close(merged.norm(dim=dim), torch.ones(6 if dim else 40))
