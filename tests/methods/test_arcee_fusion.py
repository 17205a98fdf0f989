"""Arcee Fusion: outliers of importance are taken from the second model."""

from collections.abc import Callable

import pytest
import torch

from _dense import expected
from _states import assert_equal
from _support import Case, State, family
from submerge.engine import merge_state_dicts
from submerge.errors import RequestError

FUSION = Case("arcee_fusion", "arcee_fusion", models=1)


def fused(base: State, model: State) -> State:
    return merge_state_dicts([model], base=base, method="arcee_fusion")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_element_is_one_of_either_model(dtype: torch.dtype) -> None:
    base, (model,) = family(1, {"w": (60, 70)}, dtype)
    merged = fused(base, model)["w"]
    taken = merged != base["w"]
    assert 0 < taken.double().mean() < 0.2
    torch.testing.assert_close(merged[taken], model["w"][taken], rtol=0, atol=1e-7)


def test_where_more_than_three_quarters_are_the_same_the_model_is_taken() -> None:
    """The threshold is zero."""
    base, (model,) = family(1, {"w": (40, 10)}, torch.bfloat16)
    model["w"][:31] = base["w"][:31]
    assert_equal(fused(base, model), model)


def test_a_scalar_is_taken() -> None:
    """A softmax of one number is one: nothing is more important than nothing."""
    base, (model,) = family(1, {"scalar": (), "column": (5, 1)}, torch.bfloat16)
    assert_equal(fused(base, model), model)


@pytest.mark.parametrize("length", [50, 1000])
def test_quartiles_are_exact_whatever_the_chunks(
    tiny_chunks: Callable[..., None], monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """And whatever the samples in which they are looked for."""
    tiny_chunks(length)
    monkeypatch.setattr("submerge.algebra._select.COLLECT_ALL", 1000)
    monkeypatch.setattr("submerge.engine.work._chunk_reader.SAMPLE_RUNS", 4)
    monkeypatch.setattr("submerge.engine.work._chunk_reader.SAMPLE_LENGTH", 101)
    base, models = family(1, {"w": (90, 37), "conv": (50, 4, 5, 3)}, torch.float64)
    merged, wanted = FUSION.merge(base, models), expected(FUSION, base, models)
    for key, value in merged.items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=1e-15)


def test_nan_stays_in_its_place() -> None:
    base, (model,) = family(1, {"w": (20, 30)})
    model["w"][3, 4], base["w"][5, 6] = torch.nan, torch.inf
    merged = merge_state_dicts([model], base=base, method="arcee_fusion", allow_nonfinite=True)["w"]
    assert (~merged.isfinite()).nonzero().tolist() == [[3, 4], [5, 6]]


def test_it_merges_two_models() -> None:
    base, models = family(2, {"w": (4,)})
    with pytest.raises(RequestError, match="exactly 2 models"):
        merge_state_dicts(models, base=base, method="arcee_fusion")
    with pytest.raises(RequestError, match="base"):
        merge_state_dicts(models, method="arcee_fusion")
