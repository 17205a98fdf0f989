"""The common core holds the updates exactly, and a merged core is lifted back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _updates import FILLING, SHAPES, adapters, assert_close, densely, full, matrix, normal, streamed
from submerge.algebra import Dense, LowRank, Streamed, Zero, frame, svd


@given(
    st.integers(1, 14),
    st.integers(1, 14),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_cores_are_exact(m: int, n: int, ranks: list[int], seed: int) -> None:
    updates = adapters((m, n), ranks, seed)
    core_space = frame(updates)
    total = sum(ranks)
    for side, size in ((core_space.left, m), (core_space.right, n)):
        assert (side is None) == (total == 0 or total >= size)
        if side is not None:
            assert side.shape == (size, total)
            assert_close(side.T @ side, torch.eye(total), 1e-12)
    for update, core in zip(updates, core_space.cores, strict=True):
        lifted = core_space.lift(core)
        assert lifted.shape == (m, n)
        assert_close(matrix(lifted), matrix(update), 1e-12)
        assert core.norm == pytest.approx(update.norm, abs=1e-10)


@pytest.mark.parametrize("shape", SHAPES + FILLING)
def test_singular_values_and_inner_products_are_those_of_the_updates(shape: tuple[int, int]) -> None:
    updates = adapters(shape)
    core_space = frame(updates)
    for core, update in zip(core_space.cores, updates, strict=True):
        k = update.rank
        assert_close(torch.linalg.svdvals(matrix(core))[:k], svd(update).s[:k], 1e-11)
    total = sum(matrix(u) for u in updates)
    assert_close(matrix(core_space.lift(Dense(sum(matrix(c) for c in core_space.cores)))), total, 1e-12)


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_merged_core_is_lifted_in_any_form(shape: tuple[int, int], dtype: torch.dtype) -> None:
    core_space = frame(adapters(shape, dtype=dtype))
    a, b = core_space.cores[0].shape
    left = torch.eye(shape[0], dtype=torch.float64) if core_space.left is None else core_space.left
    right = torch.eye(shape[1], dtype=torch.float64) if core_space.right is None else core_space.right
    low = LowRank(normal(1, a, 2), normal(2, 2, b))
    for core in (low, *densely([low])):
        found = core_space.lift(core)
        assert found.dense().dtype == dtype
        assert_close(matrix(found), left @ matrix(core) @ right.T, 1e-12 if dtype == torch.float64 else 1e-5)
    assert isinstance(core_space.lift(low), LowRank)
    zero = core_space.lift(Zero((a, b)))
    assert isinstance(zero, Zero)
    assert zero.shape == shape


@pytest.mark.parametrize("form", [densely, streamed])
def test_dense_updates_are_their_own_cores(form) -> None:
    updates = form(adapters((6, 5)))
    core_space = frame([*updates, Zero((6, 5)), *adapters((6, 5), [2])])
    assert core_space.left is None
    assert core_space.right is None
    assert core_space.cores[0] is updates[0]
    assert core_space.lift(updates[0]).shape == (6, 5)
    assert isinstance(core_space.lift(updates[0]), (Dense, Streamed))
    assert frame(full((3, 2), dtype=torch.float32)).dtype == torch.float32


def test_only_zeros_have_a_frame_too() -> None:
    core_space = frame([Zero((6, 5))] * 2)
    assert core_space.cores[0].shape == (6, 5)
    assert isinstance(core_space.lift(core_space.cores[0]), Zero)


def test_factors_that_repeat_are_no_trouble() -> None:
    (update,) = adapters((12, 11), [3], dtype=torch.float32)
    twice = [update, update, update.scaled(0.3)]
    core_space = frame(twice)
    for core, wanted in zip(core_space.cores, twice, strict=True):
        assert_close(matrix(core_space.lift(core)), matrix(wanted), 1e-6)
