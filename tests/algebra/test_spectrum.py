"""Singular values and vectors, polar factors and numerical ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _matrices import polar_of
from _updates import adapters, assert_close, densely, full, matrix, normal, rotation, streamed
from submerge.algebra import (
    Dense,
    LowRank,
    Update,
    Zero,
    enough,
    inverse_root,
    polar,
    rooted,
    svd,
    tolerance,
)

SHAPES = [(12, 9), (9, 12), (10, 10), (300, 280), (280, 300), (40, 1), (1, 40)]
FORMS = ["low-rank", "dense", "streamed"]


def update_of(form: str, shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> Update:
    (low,) = adapters(shape, [5], dtype=dtype)
    if form == "low-rank":
        return low
    return densely([low])[0] if form == "dense" else streamed(full(shape, 1, dtype=dtype))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_an_svd_is_one(form: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    update = update_of(form, shape, dtype)
    found, x = svd(update), matrix(update)
    eps = 1e-11 if dtype == torch.float64 else 2e-5
    k = len(found.s)
    assert found.u.dtype == found.s.dtype == found.v.dtype == dtype
    assert k == min(*shape, 5 if form != "streamed" else min(shape)), "the numerical rank, and no more"
    assert (found.s[:-1] >= found.s[1:]).all()
    assert (found.s > 0).all()
    for basis in (found.u, found.v):
        assert_close(basis.T @ basis, torch.eye(k), eps * 100)
    assert_close((found.u * found.s) @ found.v.T, x, eps)
    assert_close(found.s, torch.linalg.svdvals(x)[:k], eps)
    assert_close(matrix(found.update()), x, eps)
    for cut in (1, 3):
        best = svd(update, cut)
        assert_close(best.s, found.s[:cut], eps)
        whole = torch.linalg.svd(x, full_matrices=False)
        kept = (whole.U[:, :cut] * whole.S[:cut]) @ whole.Vh[:cut]
        assert_close((best.u * best.s) @ best.v.T, kept, eps * 10)
        assert_close(matrix(found.cut(cut).update()), kept, eps * 10)


def test_zero_has_no_triplets() -> None:
    for update in (Zero((4, 3)), Dense(torch.zeros(4, 3)), LowRank(torch.zeros(4, 2), torch.ones(2, 3))):
        found = svd(update)
        assert (found.u.shape, found.s.shape, found.v.shape) == ((4, 0), (0,), (3, 0))
        assert matrix(found.update()).count_nonzero() == 0


def test_factors_of_one_size() -> None:
    """The singular values are shared equally, so that neither factor overflows 16 bits."""
    (update,) = adapters((12, 9), [3])
    found = svd(update.scaled(1e6)).update()
    assert isinstance(found, LowRank)
    assert found.left.norm() == pytest.approx(found.right.norm().item())


def test_gauge_of_factors_makes_no_difference() -> None:
    (update,) = adapters((12, 9), [3])
    assert isinstance(update, LowRank)
    g = normal(7, 3, 3)
    other = LowRank(update.left @ torch.linalg.inv(g), g @ update.right)
    assert_close(svd(other).s, svd(update).s, 1e-11)


@pytest.mark.parametrize("shape", [(300, 280), (400, 300)])
def test_small_singular_values_are_found_in_float32(shape: tuple[int, int]) -> None:
    """The Gram matrix is in float64: what float32 data hold is not squared away."""
    n = shape[1]
    values = torch.logspace(0, -4, n, dtype=torch.float64)
    x = (rotation(1, shape[0])[:, :n] * values) @ rotation(2, n).T
    found = svd(Dense(x.float()))
    assert len(found.s) == n
    assert (found.s.double() / values - 1).abs().max() < 1e-2
    assert_close(found.s, values, 1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_polar_factor_is_orthonormal_and_nearest(m: int, k: int, seed: int) -> None:
    x = normal(seed, m, k)
    found = polar(x)
    short = min(m, k)
    assert_close(found.T @ found if m >= k else found @ found.T, torch.eye(short), 1e-6)
    assert_close(found, polar_of(x), 1e-6)
    stretch = found.T @ x if m >= k else x @ found.T
    assert_close(stretch, stretch.T, 1e-6)
    assert torch.linalg.eigvalsh((stretch + stretch.T) / 2).min() > -1e-8


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (8, 8)])
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_polar_factor_of_a_deficient_matrix_is_a_partial_isometry(
    shape: tuple[int, int], rank: int, dtype: torch.dtype
) -> None:
    x = (normal(1, shape[0], rank) @ normal(2, rank, shape[1])).to(dtype)
    found = polar(x)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.double())
    assert_close(values[:rank], torch.ones(rank), 1e-5)
    assert values[rank:].max() < 1e-5
    assert_close(found, polar_of(x.double()), 1e-5)


def test_polar_factor_of_orthonormal_columns_is_themselves() -> None:
    q = rotation(3, 9)[:, :4]
    assert_close(polar(q), q)
    assert_close(polar(5 * q), q)
    assert polar(torch.zeros(4, 3)).count_nonzero() == 0


def test_rooted_and_inverse_root() -> None:
    x = normal(0, 9, 4) @ torch.diag(torch.tensor([10.0, 3.0, 1.0, 1e-3], dtype=torch.float64))
    s, v = rooted(x.T @ x, 0.0)
    assert_close(s, torch.linalg.svdvals(x), 1e-7)
    assert_close(v.T @ v, torch.eye(4))
    s, v = rooted(x.T @ x, 1e-2)
    assert (s.shape, v.shape) == ((3,), (4, 3))
    s, v = rooted(x.T @ x, 0.0, 2)
    assert (s.shape, v.shape) == ((2,), (4, 2))
    assert_close(x @ inverse_root(x.T @ x, 0.0), polar_of(x), 1e-6)
    s, v = rooted(torch.zeros(3, 3, dtype=torch.float64), 1e-3)
    assert (s.shape, v.shape) == ((0,), (3, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(30, 20), (300, 290), (1200, 40)])
@pytest.mark.parametrize("rank", [1, 4])
def test_rounding_is_below_the_tolerance_and_signal_above(
    shape: tuple[int, int], rank: int, dtype: torch.dtype
) -> None:
    x = (normal(1, shape[0], rank) @ normal(2, rank, shape[1])).to(dtype)
    values = torch.linalg.svdvals(x.double())
    share = tolerance(shape, dtype)
    assert values[rank] < share * values[0] < values[rank - 1]


def test_enough_squares_hold_a_share_of_all() -> None:
    squares = torch.tensor([4.0, 2.0, 1.0, 1.0])
    for share, count in {1e-9: 1, 0.5: 1, 0.51: 2, 0.75: 2, 0.87: 3, 0.875: 3, 0.88: 4, 1.0: 4}.items():
        assert enough(squares, share) == count
    assert enough(torch.tensor([1.0, 1e-30]), 1.0) == 2, "all is all"
    assert enough(torch.zeros(0), 0.5) == 0


@pytest.mark.parametrize("off", [-1e-7, 0.0, 1e-7])
def test_rounding_does_not_choose_between_equal_squares(off: float) -> None:
    squares = torch.tensor([2 + 2 * off, 2.0, 1.0, 1.0 - abs(off)], dtype=torch.float64)
    assert [enough(squares, k / 6) for k in (2, 4, 5, 6)] == [1, 2, 3, 4]
