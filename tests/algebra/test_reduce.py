"""Reductions over chunks are what the whole tensor gives."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _support import drive, pieces
from submerge.algebra import ColumnGram, Gram, Reduction, Totals, exact_sum


def reduced(reduction: Reduction, updates: torch.Tensor, length: int, width: int = 1) -> object:
    def plan():
        return (yield reduction)

    return drive(plan(), updates, length=length, width=width)


def updates(count: int = 3, n: int = 1200, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


LENGTHS = pytest.mark.parametrize("length", [1, 7, 120, 1200])
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])


@LENGTHS
@DTYPES
def test_gram_is_the_matrix_of_inner_products(length: int, dtype: torch.dtype, tolerance: float) -> None:
    u = updates(dtype=dtype)
    gram = reduced(Gram(), u, length)
    assert gram.dtype == np.float64
    np.testing.assert_allclose(gram, (u.double() @ u.double().T).numpy(), rtol=0, atol=tolerance * 1200)
    assert (gram == gram.T).all()


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_column_gram_is_a_gram_for_each_column(rows: int) -> None:
    u = updates()
    gram = reduced(ColumnGram(), u, 30 * rows, width=30)
    columns = u.double().view(3, 40, 30)
    assert gram.dtype == np.float64
    np.testing.assert_allclose(gram, torch.einsum("sij,tij->stj", columns, columns).numpy(), rtol=1e-12)


@LENGTHS
def test_totals_are_sums_over_the_tensor(length: int) -> None:
    u = updates()
    sums = reduced(Totals(lambda c: torch.stack([c.updates.abs().sum(1), c.updates.sum(1)])), u, length)
    dense = torch.stack([u.double().abs().sum(1), u.double().sum(1)])
    np.testing.assert_allclose(sums, dense.numpy(), rtol=1e-6, atol=1e-4)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_exact_sum_does_not_depend_on_order(values: list[float], order: random.Random) -> None:
    shuffled = order.sample(values, len(values))
    one, other = (exact_sum([np.array([[v, 1.0]]) for v in some]) for some in (values, shuffled))
    assert one.tobytes() == other.tobytes()
    assert one.shape == (1, 2)
    assert one[0, 1] == len(values)


def test_exact_sum_rounds_once() -> None:
    parts = [np.array([1e16]), np.array([1.0]), np.array([-1e16]), np.array([1e-16])]
    assert exact_sum(parts).tolist() == [1.0]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([math.inf, 1.0], math.inf), ([math.inf, -math.inf], math.nan), ([1e308, 1e308, -1e308], math.inf)],
)
def test_exact_sum_of_what_has_no_sum(values: list[float], wanted: float) -> None:
    found = exact_sum([np.array([value]) for value in values])
    np.testing.assert_array_equal(found, [wanted])


def test_column_gram_adds_in_the_order_of_the_chunks_whatever_comes_first() -> None:
    """Floating-point sums depend on their order; a run must not depend on which thread was first."""
    u = updates()
    chunks = list(pieces(u, [(a, a + 60) for a in range(0, 1200, 60)], width=30))
    wanted = None
    for order in (chunks, chunks[::-1], chunks[1::2] + chunks[::2]):
        reduction = ColumnGram()
        found = reduction.combine([reduction.observe(chunk) for chunk in order])
        wanted = found if wanted is None else wanted
        assert found.tobytes() == wanted.tobytes()
