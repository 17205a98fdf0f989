"""Factors of a wanted rank are the best ones, balanced, and say what they keep."""

import pytest
import torch

from _updates import adapters, assert_close, densely, full, matrix
from submerge.algebra import Dense, LowRank, Zero, factored

SHAPE = (24, 30)


@pytest.mark.parametrize("rank", [1, 4, 24, 99])
def test_a_dense_update_is_cut_to_its_best_factors(rank: int) -> None:
    (update,) = full(SHAPE, 1)
    u, s, vh = torch.linalg.svd(matrix(update), full_matrices=False)
    lora = factored(update, rank)
    assert isinstance(lora.update, LowRank)
    assert_close(matrix(lora.update), (u[:, :rank] * s[:rank]) @ vh[:rank], 1e-10)
    assert lora.kept == pytest.approx(float(s[:rank].square().sum() / s.square().sum()))
    assert lora.error == pytest.approx(
        float((matrix(lora.update) - matrix(update)).norm() / update.norm), abs=1e-7
    )


def test_factors_are_balanced() -> None:
    (update,) = full(SHAPE, 1)
    lora = factored(update, 5).update
    assert isinstance(lora, LowRank)
    assert_close(lora.left.T @ lora.left, lora.right @ lora.right.T, 1e-10)


def test_factors_that_are_narrow_enough_come_back_as_they_are() -> None:
    (update,) = adapters(SHAPE, [3])
    assert factored(update, 3).update is update
    assert factored(update).update is update
    assert factored(update, 2).update.rank == 2


@pytest.mark.parametrize("energy", [0.3, 0.9, 1.0])
def test_energy_takes_the_fewest_directions_that_keep_it(energy: float) -> None:
    (update,) = full(SHAPE, 1)
    squares = torch.linalg.svdvals(matrix(update)).square()
    lora = factored(update, energy=energy)
    rank = lora.update.rank
    assert lora.kept >= energy - 1e-6
    assert float(squares[: rank - 1].sum() / squares.sum()) < energy
    assert factored(update, 2, energy).update.rank == min(2, rank)


def test_nothing_is_made_of_nothing() -> None:
    for zero in (Zero(SHAPE), Dense(torch.zeros(SHAPE)), *densely([Zero(SHAPE)])):
        lora = factored(zero, 3, 0.9)
        assert isinstance(lora.update, Zero)
        assert (lora.kept, lora.error) == (1.0, 0.0)
