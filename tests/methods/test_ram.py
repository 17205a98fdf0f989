"""RAM: what several models change is averaged, what one changes is kept."""

import pytest
import torch

from _states import assert_close, assert_equal
from _support import family
from submerge.engine import merge_state_dicts

SPARSE = [[2.0, 4.0, 0.0, 1e-6, 1.0], [4.0, 0.0, 8.0, -1e-6, 0.0], [0.0, 0.0, 4.0, 0.0, 0.0]]
"""The updates of three models: of model 1 two elements are unique, and one is shared."""


def merged(method: str, **options: float) -> list[float]:
    models = [{"w": torch.tensor(update)} for update in SPARSE]
    base = {"w": torch.zeros(5)}
    return merge_state_dicts(models, base=base, method=method, **options)["w"].tolist()


def test_shared_elements_are_averaged_and_unique_ones_are_kept() -> None:
    assert merged("ram") == [3.0, 4.0, 6.0, 0.0, 1.0]
    assert merged("ram", epsilon=1e-7) == pytest.approx([3.0, 4.0, 6.0, 0.0, 1.0])
    assert merged("ram", epsilon=3.0) == [4.0, 4.0, 6.0, 0.0, 0.0]
    assert merged("ram", epsilon=8.0) == [0.0] * 5


def test_unique_elements_are_amplified_by_the_models_overlap() -> None:
    assert merged("ramplus_tl", r=1.0, alpha=9.0) == [3.0, 6.0, 6.0, 0.0, 1.5]  # ρ = 1/2
    assert merged("ramplus_tl", r=1.0, alpha=0.25) == [3.0, 5.0, 6.0, 0.0, 1.25]
    assert merged("ramplus_tl") == pytest.approx([3.0, 4.08, 6.0, 0.0, 1.02])
    assert merged("ramplus_tl", r=0.0) == merged("ram")


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_one_model_is_that_model(method: str) -> None:
    base, (model,) = family(1, dtype=torch.bfloat16)
    assert_equal(merge_state_dicts([model], base=base, method=method, epsilon=0), model)


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_any_number_of_models(method: str) -> None:
    base, (model,) = family(1)
    assert_close(merge_state_dicts([model] * 12, base=base, method=method), model)


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_nan_is_a_change(method: str) -> None:
    base, models = family(2, {"w": (6,)})
    models[0]["w"][2] = torch.nan
    out = merge_state_dicts(models, base=base, method=method, allow_nonfinite=True)["w"]
    assert out.isnan().tolist() == [False, False, True, False, False, False]
