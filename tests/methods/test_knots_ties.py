"""KnOTS-TIES against its formula by a plain SVD and sorts, and what it must give where that is known."""

from collections.abc import Sequence

import pytest
import torch

from _updates import FILLING, SHAPES, adapters, assert_close, fold, full, matrix, merged, truncated
from submerge.algebra import Update

WEIGHTS = [1.0, 0.5, 2.0]


def reference(
    updates: Sequence[Update], density: float, weights: Sequence[float], normalize: bool
) -> torch.Tensor:
    """Return U · TIES(w_t s V_tᵀ) of the joint SVD."""
    stack = torch.cat([matrix(u) for u in updates], dim=1)
    u, s, v = truncated(stack, min(stack.shape))
    blocks = (s * v).T.split(updates[0].shape[1], dim=1)
    terms = []
    for block, weight in zip(blocks, weights, strict=True):
        kept = min(int(density * block.numel()) + 1, block.numel())
        limit = block.abs().flatten().sort(descending=True).values[kept - 1]
        terms.append(weight * torch.where(block.abs() >= limit, block, 0))
    trimmed = torch.stack(terms)
    agrees = trimmed.sign() == torch.where(trimmed.sum(0) >= 0, 1, -1)
    result = (trimmed * agrees).sum(0)
    if normalize:
        divisor = (agrees * torch.tensor(weights, dtype=torch.float64)[:, None, None]).sum(0)
        result = result / torch.where(divisor == 0, 1, divisor)
    return u @ result


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("density", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bank", [adapters, full])
def test_it_is_its_formula(shape: tuple[int, int], density: float, normalize: bool, bank) -> None:
    updates = bank(shape)
    found = merged("knots_ties", updates, density=density, weight=WEIGHTS, normalize=normalize, scale=0.5)
    assert_close(found, 0.5 * reference(updates, density, WEIGHTS, normalize), 1e-7)


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
    found = merged("knots_ties", updates)
    assert_close(found, 0.6 * reference(updates, 0.2, [1.0] * 3, True), 1e-7)
    assert fold("knots_ties", updates).figures["rank"] == 9


def test_a_density_of_zero_takes_a_model_out_of_the_vote() -> None:
    updates = adapters((24, 30))
    found = merged("knots_ties", updates, density=[0.5, 0.0, 0.5])
    assert_close(found, merged("knots_ties", updates, density=0.5, weight=[1.0, 0.0, 1.0]))
    assert merged("knots_ties", updates, density=0.0).count_nonzero() == 0
