"""Updates in every form do what their matrix does; sums of low-rank ones are concatenations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _updates import adapters, assert_close, densely, full, matrix, normal, streamed
from submerge.algebra import Dense, LowRank, Streamed, Update, Zero, inner, weighted_sum

sizes = st.integers(1, 9)
seeds = st.integers(0, 1000)


@st.composite
def banks(draw: st.DrawFn, count: int = 1) -> list[Update]:
    """Updates of one shape, each of some form."""
    shape = draw(sizes), draw(sizes)
    found: list[Update] = []
    for t in range(count):
        form = draw(st.sampled_from(["low-rank", "dense", "streamed", "zero"]))
        seed = draw(seeds) + 10_000 * t
        (update,) = (
            adapters(shape, [draw(st.integers(1, 5))], seed) if form == "low-rank" else full(shape, 1, seed)
        )
        if form == "streamed":
            (update,) = streamed([update])
        found.append(Zero(shape) if form == "zero" else update)
    return found


def gram(update: Update, side: str) -> torch.Tensor:
    return update.row_gram() if side == "left" else update.column_gram()


@pytest.fixture(params=[1, 7, 1 << 20], autouse=True, scope="module")
def blocks(request: pytest.FixtureRequest) -> None:
    """Rows come one at a time, a few at a time, or all at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("submerge.algebra._update.BLOCK", request.param)
        patch.setattr("submerge.algebra._update.PANEL", min(request.param, 3))
        yield


@given(banks(), sizes, seeds)
def test_an_update_does_what_its_matrix_does(bank: list[Update], k: int, seed: int) -> None:
    (update,) = bank
    x, (m, n) = matrix(update), update.shape
    assert x.shape == (m, n)
    right, left = normal(seed, n, k), normal(seed, m, k)
    assert_close(update.matmul(right), x @ right, 1e-12)
    assert_close(update.rmatmul(left.T), left.T @ x, 1e-12)
    assert_close(update.row_gram(), x @ x.T, 1e-12)
    assert_close(update.column_gram(), x.T @ x, 1e-12)
    assert_close(matrix(update.scaled(-0.5)), -0.5 * x, 1e-14)
    assert update.norm == pytest.approx(x.norm().item(), abs=1e-12)
    assert torch.linalg.matrix_rank(x) <= update.rank <= min(m, n)
    assert type(update.scaled(2)) is type(update)


@given(banks(), st.data())
def test_rows_are_those_of_the_matrix(bank: list[Update], data: st.DataObject) -> None:
    (update,) = bank
    start = data.draw(st.integers(0, update.shape[0]))
    stop = data.draw(st.integers(start, update.shape[0]))
    assert_close(update.rows(start, stop).double(), matrix(update)[start:stop], 1e-14)


@given(banks(2))
def test_inner_products(bank: list[Update]) -> None:
    a, b = bank
    assert inner(a, b) == pytest.approx((matrix(a) * matrix(b)).sum().item(), abs=1e-10)
    assert inner(a, b) == pytest.approx(inner(b, a), abs=1e-10)
    assert inner(a, a) == pytest.approx(a.norm**2)


@given(banks(3), st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_weighted_sums(bank: list[Update], weights: list[float]) -> None:
    found = weighted_sum(bank, weights)
    wanted = sum(w * matrix(u) for w, u in zip(weights, bank, strict=True))
    assert_close(matrix(found), wanted, 1e-12)
    taking = {type(u) for u, w in zip(bank, weights, strict=True) if w} - {Zero}
    form = Streamed if Streamed in taking else Dense if Dense in taking else LowRank if taking else Zero
    assert type(found) is form


@given(banks(), seeds, st.sampled_from(["left", "right"]))
def test_what_is_streamed_may_reuse_its_buffer(bank: list[Update], seed: int, side: str) -> None:
    """A reader may hand out the same memory again and again."""
    x = matrix(bank[0])
    buffer = torch.empty(x.shape[0] * x.shape[1], dtype=x.dtype)

    def read(start: int, stop: int) -> torch.Tensor:
        view = buffer[: (stop - start) * x.shape[1]].view(stop - start, x.shape[1])
        return view.copy_(x[start:stop])

    update = Streamed((x.shape[0], x.shape[1]), read, torch.float64)
    assert_close(gram(update, side), x @ x.T if side == "left" else x.T @ x, 1e-12)
    assert_close(update.matmul(torch.eye(x.shape[1], dtype=x.dtype)), x, 1e-14)
    assert update.norm == pytest.approx(x.norm().item())


def test_concatenation_is_exact() -> None:
    updates = adapters((6, 8))
    found = weighted_sum(updates, [1.0, 0.5, -2.0])
    assert isinstance(found, LowRank)
    assert found.left.shape == (6, 9)
    assert found.rank == 6, "no more than the matrix can have"
    parts = found.left.split([3, 4, 2], dim=1)
    for part, update, weight in zip(parts, updates, [1.0, 0.5, -2.0], strict=True):
        assert isinstance(update, LowRank)
        assert torch.equal(part, weight * update.left)


def test_the_dtype_of_the_data_comes_back() -> None:
    for dtype in (torch.float32, torch.float64):
        for update in (*full((5, 4), 1, dtype=dtype), *adapters((5, 4), [2], dtype=dtype)):
            (read,) = streamed([update])
            for one in (update, update.scaled(2), read, read.scaled(2), *densely([update])):
                assert one.dense().dtype == dtype
                assert one.row_gram().dtype == torch.float64
            assert weighted_sum([update, update], [1, 2]).dense().dtype == dtype
            total = weighted_sum([read, read], [1, 2])
            assert isinstance(total, Streamed)
            assert total.dtype == dtype
            x = normal(0, 4, 2)
            for wanted in (torch.float32, torch.float64):
                assert update.matmul(x.to(wanted)).dtype == wanted


def test_sums_are_in_float64() -> None:
    """A norm of float32 entries whose squares float32 cannot add."""
    update = Dense(torch.full((1000, 1000), 1e-3))
    assert update.norm == pytest.approx(math.sqrt(1e6 * float(torch.tensor(1e-3)) ** 2), rel=1e-12)


def test_factors_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match=r"factors \[3, 2\] and \[4, 5\] do not meet"):
        LowRank(torch.ones(3, 2), torch.ones(4, 5))


@pytest.mark.parametrize("block", [40, 100, 1 << 20])
@pytest.mark.parametrize("shape", [(24, 30), (30, 24)])
def test_a_gram_matrix_is_of_one_rounding(
    shape: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are computed are rounded by their range; a mixture of roundings would have another rank."""
    monkeypatch.setattr("submerge.algebra._update.BLOCK", block)
    (update,) = adapters(shape, [3])
    whole = matrix(update)

    def read(start: int, stop: int) -> torch.Tensor:
        rounding = torch.Generator().manual_seed(1000 * start + stop)
        off = torch.randint(-1, 2, (stop - start, shape[1]), generator=rounding) * 2.0**-24
        return (whole[start:stop] * (1 + off)).float()

    found = Streamed(shape, read)
    for side in ("left", "right"):
        values = torch.linalg.eigvalsh(gram(found, side)).flip(0)
        assert values[3:].abs().max() < 1e-12 * values[0]
