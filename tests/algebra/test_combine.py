"""Sums over models are those of the dense stack."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from submerge.algebra import combine, total


def updates(count: int = 3, n: int = 1200, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@given(st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=6))
def test_combine_and_total_are_weighted_sums(coefficients: list[float]) -> None:
    u = updates(len(coefficients), 50)
    assert torch.equal(total(u, torch.empty_like(u[0])), sum(u[1:], start=u[0]))
    dense = (u.double() * torch.tensor(coefficients).double().unsqueeze(1)).sum(0)
    torch.testing.assert_close(combine(u.clone(), coefficients).double(), dense, rtol=0, atol=1e-5)


def test_combine_wants_a_coefficient_for_each_row() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        combine(updates(), [1.0, 2.0])
