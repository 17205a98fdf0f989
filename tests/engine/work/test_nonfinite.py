"""NaN and Inf: they are found and counted in any type, and told by tensor."""

import pytest
import torch

from submerge.engine.work import count_nonfinite, nonfinite_error, nonfinite_in_bytes
from submerge.store import byte_view, dtype_named

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_value_is_found_wherever_it_is(dtype: torch.dtype, bad: float) -> None:
    for place in (0, 17, 99):
        values = torch.zeros(100, dtype=dtype)
        values[place] = bad
        assert count_nonfinite(values) == 1
        assert nonfinite_in_bytes(byte_view(values), dtype_named(dtype)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_values_whose_sum_overflows_are_finite(dtype: torch.dtype) -> None:
    values = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert count_nonfinite(values) == 0
    assert nonfinite_in_bytes(byte_view(values), dtype_named(dtype)) == 0
    assert nonfinite_in_bytes(memoryview(b""), dtype_named(dtype)) == 0


def test_values_that_cancel_are_found() -> None:
    assert count_nonfinite(torch.tensor([float("inf"), float("-inf"), 1.0])) == 2


def test_integers_have_none() -> None:
    assert nonfinite_in_bytes(byte_view(torch.full((3,), -1)), "I64") == 0


def test_the_error_names_the_first_tensors_and_counts_the_rest() -> None:
    one = str(nonfinite_error({"a.weight": {"chat": 2, "the output": 1}}))
    assert one.startswith("NaN or Inf in 1 tensor — ")
    assert one.endswith("\n  a.weight: 2 in chat, 1 in the output")
    many = str(nonfinite_error({f"t{number}": {"chat": 1} for number in range(13)})).splitlines()
    assert "13 tensors" in many[0]
    assert len(many) == 1 + 10 + 1
    assert many[-1] == "  … and 3 tensors more"


def test_what_is_too_large_for_the_output_is_not_to_be_mended_in_the_inputs() -> None:
    of_output = str(nonfinite_error({"a.weight": {"the output": 1}, "b.weight": {"the output": 2}}))
    assert "choose dtype: bfloat16 or float32, or smaller weights" in of_output
    assert "mend the inputs" not in of_output
    assert "mend the inputs" in str(nonfinite_error({"a": {"the output": 1}, "b": {"chat": 1}}))
