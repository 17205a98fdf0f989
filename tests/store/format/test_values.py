"""Values of float tensors as arrays: what torch makes of the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from submerge.store import MemorySource, byte_view, read_values, rounded

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@pytest.mark.parametrize("dtype", TYPES)
def test_ranges_as_floats(dtype: str) -> None:
    tensor = torch.randn(5, 7).to(TYPES[dtype])
    values = read_values(MemorySource(tensor), dtype, 3, 20)
    assert values.dtype == (np.float64 if dtype == "F64" else np.float32)
    assert np.array_equal(values, tensor.view(-1)[3:23].to(torch.float64).numpy())
    assert read_values(MemorySource(tensor), dtype, 35, 0).size == 0


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", TYPES)
def test_rounding_is_that_of_torch(dtype: str, wide: torch.dtype) -> None:
    tensor = torch.cat([torch.randn(1000), torch.tensor([1e-7, 3e38, 65504.0, 65520.0, -0.0])]).to(wide)
    bits = rounded(tensor.numpy(), dtype)
    assert bytes(byte_view(bits)) == bytes(byte_view(tensor.to(TYPES[dtype])))
