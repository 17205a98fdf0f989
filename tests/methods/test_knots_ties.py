"""KnOTS-TIES against its formula by a plain SVD and sorts, and what it must give where that is known."""

import pytest
import torch

from _matrices import truncated
from _updates import FILLING, SHAPES, adapters, assert_close, fold, formula, full, matrix, merged

WEIGHTS = [1.0, 0.5, 2.0]


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("density", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bank", [adapters, full])
def test_it_is_its_formula(shape: tuple[int, int], density: float, normalize: bool, bank) -> None:
    updates = bank(shape)
    o = {"density": density, "weight": WEIGHTS, "normalize": normalize, "scale": 0.5}
    assert_close(merged("knots_ties", updates, **o), formula("knots_ties", updates, **o), 1e-7)


@pytest.mark.parametrize("bank", [adapters, full])
@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999])
def test_one_entry_more_than_the_share_is_kept(bank, density: float) -> None:
    """As in the authors' code: those that are at least the (d − k)-th smallest."""
    (update,) = bank((24, 30))[:1]
    u, s, v = truncated(matrix(update), 24)
    found = u.T @ merged("knots_ties", [update], density=density, scale=1.0)
    kept = (found.abs() > 1e-12).sum()
    assert kept == int(density * len(s) * 30) + 1
    assert_close(found, torch.where(found.abs() > 1e-12, s.unsqueeze(1) * v.T, 0), 1e-9)


@pytest.mark.parametrize("bank", [adapters, full])
def test_one_whole_model_is_that_model(bank) -> None:
    update = bank((24, 30))[0]
    assert_close(merged("knots_ties", [update], density=1.0, scale=1.0), matrix(update))


def test_copies_of_one_model_are_that_model() -> None:
    update = adapters((24, 30))[0]
    found = merged("knots_ties", [update] * 3, density=1.0, scale=1.0, weight=WEIGHTS)
    assert_close(found, matrix(update))


def test_models_that_agree_everywhere_are_averaged() -> None:
    update = adapters((24, 30))[0]
    updates = [update, update.scaled(2), update.scaled(6)]
    assert_close(merged("knots_ties", updates, density=1.0, scale=1.0), 3 * matrix(update))
    found = merged("knots_ties", updates, density=1.0, scale=1.0, normalize=False)
    assert_close(found, 9 * matrix(update))


def test_the_defaults_are_those_of_the_authors_for_clip() -> None:
    updates = adapters((24, 30))
    wanted = formula("knots_ties", updates, density=0.2, scale=0.6, normalize=True)
    assert_close(merged("knots_ties", updates), wanted, 1e-7)
    assert fold("knots_ties", updates).figures["rank"] == 9


def test_a_density_of_zero_takes_a_model_out_of_the_vote() -> None:
    updates = adapters((24, 30))
    found = merged("knots_ties", updates, density=[0.5, 0.0, 0.5])
    assert_close(found, merged("knots_ties", updates, density=0.5, weight=[1.0, 0.0, 1.0]))
    assert merged("knots_ties", updates, density=0.0).count_nonzero() == 0
