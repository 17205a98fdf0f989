"""TSV-M against its formula by plain SVDs, and what it must give where the answer is known."""

import pytest
import torch

from _matrices import truncated
from _updates import (
    FILLING,
    SHAPES,
    adapters,
    assert_close,
    fold,
    formula,
    full,
    matrix,
    merged,
    normal,
    rotation,
)
from submerge.algebra import Dense, LowRank


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("k", [None, 1, 2, 9])
@pytest.mark.parametrize("bank", ["low-rank", "dense"])
def test_it_is_its_formula(shape: tuple[int, int], k: int | None, bank: str) -> None:
    updates = adapters(shape) if bank == "low-rank" else full(shape)
    found = merged("tsv_m", updates, rank=k or "auto")
    if k == 9 and bank == "dense":  # more vectors than dimensions: polar factors of wide matrices
        assert found.isfinite().all()
    assert_close(found, formula("tsv_m", updates, rank=k or "auto"), 1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_its_singular_values_are_those_that_were_kept(shape: tuple[int, int]) -> None:
    updates = adapters(shape)
    kept = torch.cat([truncated(matrix(u), 6)[1] for u in updates]).sort(descending=True).values
    found = torch.linalg.svdvals(merged("tsv_m", updates))
    assert_close(found[: len(kept)], kept)
    assert found[len(kept) :].max() < 1e-9 if len(found) > len(kept) else True


def test_updates_that_do_not_overlap_are_summed() -> None:
    u, v = rotation(1, 24), rotation(2, 30)
    updates = [
        LowRank(u[:, 3 * t : 3 * t + 3] @ torch.diag(normal(t, 3).abs() + 1), v[:, 3 * t : 3 * t + 3].T)
        for t in range(3)
    ]
    assert_close(
        merged("tsv_m", updates, weight=[1.0, -0.5, 2.0]),
        sum(w * matrix(x) for w, x in zip([1.0, -0.5, 2.0], updates, strict=True)),
    )


def test_one_model_is_that_model() -> None:
    (update,) = adapters((24, 30), [3])
    assert_close(merged("tsv_m", [update], scale=1.5), 1.5 * matrix(update))
    (update,) = full((12, 9), 1)
    assert_close(merged("tsv_m", [update]), matrix(update))
    u, s, v = truncated(matrix(update), 4)
    assert_close(merged("tsv_m", [update], rank=4), u @ torch.diag(s) @ v.T)


def test_copies_of_one_model_are_that_model() -> None:
    """U = [U_1 … U_1] has the range of U_1 alone; the mean of equal values is left."""
    (update,) = adapters((24, 30), [3])
    assert_close(merged("tsv_m", [update] * 3), matrix(update), 1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_transposed_updates_give_the_transposed_merge(shape: tuple[int, int]) -> None:
    updates = full(shape)
    found = merged("tsv_m", [Dense(matrix(u).T) for u in updates])
    assert_close(found.T, merged("tsv_m", updates), 1e-8)


def test_auto_shares_the_dimensions_among_the_models() -> None:
    assert fold("tsv_m", full((24, 30))).figures["rank"] == 8
    assert fold("tsv_m", full((2, 3))).figures["rank"] == 1
    assert fold("tsv_m", adapters((24, 30))).figures["rank"] == 4, "no more than there are"


def test_adapters_of_nearly_equal_directions_lose_nothing() -> None:
    """In float32 the halves of the merge are rounded, not their product with its large entries."""
    u, v, far = rotation(1, 40)[:, :4], rotation(2, 30)[:, :4], 1e-4
    levels = torch.tensor([[4.0, 3, 2, 1], [1.5, 2.5, 3.5, 4.5]])
    moved = [(u + far * t * rotation(3, 40)[:, :4], v + far * t * rotation(4, 30)[:, :4]) for t in range(2)]
    updates = [LowRank((a * s).float(), b.T.float()) for (a, b), s in zip(moved, levels, strict=True)]
    exact = [LowRank(u.left.double(), u.right.double()) for u in updates]
    wanted = formula("tsv_m", exact, rank=4)
    found = matrix(fold("tsv_m", updates, rank=4).update)
    assert (found - wanted).norm() < 3e-6 * wanted.norm()
