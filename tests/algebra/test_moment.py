"""Second moments of every kind do what their matrices do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from _updates import assert_close, normal
from submerge.algebra import BlockMoment, FactorMoment, Moment, ProductSum, TriangleMoment, add_products

N = 12
ROWS = normal(0, 30, N)
OTHER = normal(1, 7, N)
EYE = torch.eye(N, dtype=torch.float64)


def moment_of(kind: str, rows: torch.Tensor) -> Moment:
    if kind == "identity":
        return FactorMoment.identity(N, len(rows))
    if kind == "lowrank":
        return FactorMoment(rows, 0.5, len(rows))
    if kind == "triangle":
        return TriangleMoment.of(rows)
    return BlockMoment.of(rows, {"full": None, "block": 4, "diag": 1}[kind])


def matrix_of(kind: str, rows: torch.Tensor) -> torch.Tensor:
    c = rows.T @ rows
    if kind == "block":
        return c * torch.kron(torch.eye(3), torch.ones(4, 4))
    return {
        "full": c,
        "triangle": c,
        "diag": c.diag().diag(),
        "lowrank": c + 0.5 * EYE,
        "identity": len(rows) * EYE,
    }[kind]


def name_of(kind: str) -> str:
    return "full" if kind == "triangle" else kind


@pytest.mark.parametrize("kind", ["full", "triangle", "block", "diag", "lowrank", "identity"])
class TestEveryKind:
    def test_it_is_its_matrix(self, kind: str) -> None:
        moment, c = moment_of(kind, ROWS), matrix_of(kind, ROWS)
        assert (moment.kind, moment.width, moment.count) == (name_of(kind), N, 30)
        assert_close(moment.times(EYE), c, 1e-12)
        assert moment.trace == pytest.approx(c.trace().item())
        a = normal(2, 5, N)
        assert_close(moment.times(a), a @ c, 1e-12)
        assert_close(moment.solve(a), a @ c.inverse(), 1e-10)
        assert not moment.singular
        values = torch.linalg.eigvalsh(c)
        assert moment.condition() == pytest.approx((values[-1] / values[0]).item(), rel=0.1)

    def test_it_adds_and_scales(self, kind: str) -> None:
        one, other = moment_of(kind, ROWS), moment_of(kind, OTHER)
        c = matrix_of(kind, ROWS)
        joined = one.added(other)
        assert_close(joined.times(EYE), c + matrix_of(kind, OTHER), 1e-12)
        assert joined.count == 37
        assert_close(one.scaled(2.5).times(EYE), 2.5 * c, 1e-12)
        assert_close(one.per_token().times(EYE), c / 30, 1e-12)
        assert_close(one.shifted(2.0).times(EYE), c + 2 * EYE, 1e-12)
        assert_close(one.ridged(0.1).times(EYE), c + 0.1 * c.trace() / N * EYE, 1e-12)
        assert_close(one.times(EYE), c, 1e-12)  # no operation changes what it is of

    def test_it_comes_back_from_its_tensors(self, kind: str) -> None:
        moment = moment_of(kind, ROWS)
        again = Moment.from_tensors(moment.tensors())
        assert (again.kind, again.count) == (name_of(kind), 30)
        assert torch.equal(again.times(EYE), moment.times(EYE))


@pytest.mark.parametrize("kind", ["full", "triangle", "block", "diag", "identity"])
def test_off_diagonal_elements_are_shrunk(kind: str) -> None:
    c = matrix_of(kind, ROWS)
    assert_close(moment_of(kind, ROWS).shrunk(0.9).times(EYE), 0.9 * c + 0.1 * c.diag().diag(), 1e-12)


def test_leading_eigenpairs_hold_the_energy() -> None:
    values, vectors = torch.linalg.eigh(ROWS.T @ ROWS)
    for moment in (BlockMoment.of(ROWS), TriangleMoment.of(ROWS), FactorMoment(ROWS, 0.0, 30)):
        truncated = moment.truncated(0.8)
        p = len(truncated.factor)
        assert values[-p:].sum() >= 0.8 * values.sum() > values[1 - p :].sum()
        assert_close(truncated.times(EYE), (vectors[:, -p:] * values[-p:]) @ vectors[:, -p:].T, 1e-9)
        assert truncated.count == 30
    with pytest.raises(ValueError, match="diag moments are not truncated"):
        BlockMoment.of(ROWS, block=1).truncated(0.8)
    with pytest.raises(ValueError, match="factors have no diagonal"):
        FactorMoment(ROWS, 0.0, 30).shrunk(0.9)


@pytest.mark.parametrize("kind", ["full", "triangle", "block", "diag", "factor"])
def test_a_singular_moment_has_a_pseudo_inverse(kind: str) -> None:
    rows = normal(0, 5, N) if kind in ("full", "triangle", "factor") else normal(0, 50, N)
    rows[:, 3] = 0.0  # an input that is never there
    block = FactorMoment(rows, 0.0, 5) if kind == "factor" else moment_of(kind, rows)
    c = block.times(EYE)
    assert block.singular
    assert block.condition() == math.inf
    assert_close(block.solve(c), torch.linalg.pinv(c, hermitian=True) @ c, 1e-8)


@pytest.mark.parametrize("of", [BlockMoment.of, TriangleMoment.of])
def test_a_nearly_singular_moment_is_not_inverted_into_noise(of: Callable[[torch.Tensor], Moment]) -> None:
    directions = normal(0, 2, N)
    moment = of(normal(1, 40, 2) @ directions)  # its other eigenvalues are rounding
    a = directions[:1]
    assert_close(moment.times(moment.solve(a)), a, 1e-10)
    assert moment.solve(a).norm() < 1


def test_directions_that_two_factors_share_are_counted_once() -> None:
    """Kept in float32, two factors of one direction differ by rounding, which no sum is to be inverted on."""
    a = normal(0, 1, N)
    alike = (a + 3e-8 * normal(1, 1, N), a + 3e-8 * normal(2, 1, N))
    moment = FactorMoment(alike[0], 0.0, 1).added(FactorMoment(alike[1], 0.0, 1))
    assert moment.singular
    assert_close(moment.solve(alike[0]), a / (2 * a.square().sum()), 1e-6)


@pytest.mark.parametrize("of", [BlockMoment.of, TriangleMoment.of])
def test_channels_of_very_different_sizes_are_no_singularity(of: Callable[[torch.Tensor], Moment]) -> None:
    sizes = torch.logspace(-9, 3, N, dtype=torch.float64)
    moment = of(ROWS * sizes)
    a = normal(2, 3, N)
    assert not moment.singular
    assert_close(moment.solve(moment.times(a)) * sizes, a * sizes, 1e-10)  # what they answer to the inputs


def test_factors_have_no_more_rows_than_inputs() -> None:
    moment = FactorMoment(ROWS[:10], 0.0, 10).added(FactorMoment(ROWS[10:], 0.0, 20))
    assert moment.factor.shape == (N, N)
    assert_close(moment.times(EYE), ROWS.T @ ROWS, 1e-12)


def test_no_rows_are_no_information() -> None:
    moment = BlockMoment.of(torch.zeros(0, N))
    assert (moment.count, moment.trace, moment.singular) == (0, 0.0, True)
    assert not moment.per_token().ridged(1e-3).solve(EYE).any()


def test_products_are_added_in_place_in_any_batches() -> None:
    sums = torch.zeros(3, 4, 4, dtype=torch.float64)
    for rows in ROWS.float().split(7):
        add_products(sums, rows)
    assert_close(sums, BlockMoment.of(ROWS.float(), block=4).sum, 1e-14)


def test_a_triangle_of_several_blocks_is_the_matrix() -> None:
    n = 1100  # three blocks of rows, the last of which is smaller
    rows, a = normal(3, 40, n), normal(4, 5, n)
    c = rows.T @ rows + torch.eye(n, dtype=torch.float64)
    moment = TriangleMoment.of(rows).shifted(1.0)
    assert_close(moment.times(a), a @ c, 1e-12)
    assert_close(moment.solve(a), torch.linalg.solve(c, a.T).T, 1e-10)
    assert moment.trace == pytest.approx(c.trace().item())


def test_both_forms_of_a_full_moment_add() -> None:
    square, triangle = BlockMoment.of(ROWS), TriangleMoment.of(OTHER)
    c = ROWS.T @ ROWS + OTHER.T @ OTHER
    for total in (square.added(triangle), triangle.added(square)):
        assert isinstance(total, TriangleMoment)
        assert_close(total.times(EYE), c, 1e-12)
        assert total.count == 37


def test_sums_in_float32_stay_so_unless_they_are_read_to_be_solved() -> None:
    products = ProductSum(N, torch.float32)
    for rows in ROWS.split(7):
        products.add(rows)
    moment = TriangleMoment(products.triangle, 30)
    for one in (moment.per_token(), moment.ridged(0.1), moment.shrunk(0.5), moment.added(moment)):
        assert isinstance(one, TriangleMoment)
        assert one.triangle.dtype == torch.float32
    read = Moment.from_tensors(moment.tensors())
    assert isinstance(read, TriangleMoment)
    assert read.triangle.dtype == torch.float64
    stored = Moment.from_tensors(moment.tensors(), as_stored=True)
    assert isinstance(stored, TriangleMoment)
    assert torch.equal(stored.triangle, moment.triangle)
    assert_close(moment.solve(moment.times(EYE)), EYE, 1e-10)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 5 do not divide 12 inputs"):
        BlockMoment.of(ROWS, block=5)
    kinds = ["full", "block", "diag", "lowrank"]
    for one, other in zip(kinds, kinds[1:] + kinds[:1], strict=True):
        with pytest.raises(ValueError, match=f"a {one} moment of 12 inputs and a {other} one of 12"):
            moment_of(one, ROWS).added(moment_of(other, ROWS))
    for tensors in ({}, {"sum": torch.ones(3)}, {"sum": torch.ones(3), "count": torch.tensor(1)}):
        with pytest.raises(ValueError, match="is no moment"):
            Moment.from_tensors(tensors)


@pytest.mark.parametrize("kind", ["full", "triangle", "block", "diag"])
def test_the_least_share_is_what_other_inputs_leave(kind: str) -> None:
    """Of an input that is another one but for 1e-3 of it; sizes of channels do not count."""
    x = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    x = x * torch.tensor([1e4, 1, 1e-4, 1])
    block = {"block": 2, "diag": 1}.get(kind)
    moment = TriangleMoment.of(x) if kind == "triangle" else BlockMoment.of(x, block)
    assert moment.least_share == pytest.approx(1 if kind == "diag" else 1e-6, rel=0.5)


def test_the_least_share_of_a_sum_without_full_rank_is_that_of_its_range() -> None:
    singular = BlockMoment.of(normal(0, 3, 5))
    eigenvalues = torch.linalg.eigvalsh(singular.sum[0])[-3:]
    assert singular.singular
    assert singular.least_share == pytest.approx(float(eigenvalues.min() / eigenvalues.max()))
    assert FactorMoment.identity(3, count=2).least_share == 1


def test_the_least_share_is_that_of_a_block() -> None:
    """Inputs that are not mixed have shares of 1, of whatever size they are, and though one is zero."""
    rows = torch.tensor([[1e4, 0.0, 1e-4], [-1e4, 0.0, 1e-4]])
    assert BlockMoment.of(rows, 1).singular
    assert BlockMoment.of(rows, 1).least_share == 1
    assert BlockMoment.of(torch.zeros(2, 3)).least_share == 1
