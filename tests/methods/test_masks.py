"""The random masks: who is kept how often, and that what is merged is right on average."""

import math
from collections.abc import Callable

import pytest
import torch

from _support import State, random_mask
from submerge.algebra import stream_key
from submerge.engine import merge_state_dicts

SHAPE = (32, 256)
N = 32 * 256


def update(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def masked(tau: torch.Tensor, method: str, seed: int = 0, **options: object) -> torch.Tensor:
    """Return the update of one model after its mask."""
    options = {"weight": 1, "normalize": False} | options
    base: State = {"w": torch.zeros_like(tau)}
    return merge_state_dicts([{"w": tau}], base=base, method=method, seed=seed, **options)["w"]


def average(tau: torch.Tensor, rounds: int, method: str, **options: object) -> torch.Tensor:
    return torch.stack([masked(tau, method, seed, **options) for seed in range(rounds)]).double().mean(0)


def by_rank(tau: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Return DELLA's probabilities, rows along the last axis."""
    rank = tau.abs().argsort(-1).argsort(-1).double()
    return density - epsilon + 2 * epsilon * rank / (tau.shape[-1] - 1)


METHODS = [("dare_linear", {"density": 0.4}), ("dare_ties", {"density": 0.4})]
METHODS += [(name, {"density": 0.4, "epsilon": 0.3}) for name in ("della", "della_linear")]
each = pytest.mark.parametrize(("method", "options"), METHODS)


@each
def test_the_share_that_is_kept_is_the_density(method: str, options: dict) -> None:
    share = (masked(update(), method, **options) != 0).sum().item() / N
    assert share == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / N))


@each
def test_paper_is_unbiased(method: str, options: dict) -> None:
    """E[τ̂] = τ, entry by entry: kept with probability p, then divided by p."""
    tau, rounds = update(), 100
    found = average(tau, rounds, method, variant="paper", **options)
    p = torch.full(SHAPE, 0.4).double() if "dare" in method else by_rank(tau, 0.4, 0.3)
    deviations = (found - tau) / (tau.abs() * ((1 - p) / p / rounds).sqrt())
    assert deviations.abs().max() < 7
    assert deviations.square().mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_with_mergekits_rescaling_is_unbiased_but_for_the_norm(method: str) -> None:
    tau, rounds = update(), 100
    found = average(tau, rounds, method, density=0.4)
    assert ((found - tau) * tau).sum().item() / tau.square().sum().item() == pytest.approx(0, abs=0.01)
    assert ((found - tau).norm() / tau.norm()).item() < 1.2 * math.sqrt(0.6 / 0.4 / rounds)


def test_della_keeps_entries_by_their_rank_in_the_row() -> None:
    tau, rounds = update(), 100
    survived = torch.stack(
        [masked(tau, "della", seed, density=0.5, epsilon=0.4) != 0 for seed in range(rounds)]
    )
    p = by_rank(tau, 0.5, 0.4)
    deviations = (survived.double().mean(0) - p) / (p * (1 - p) / rounds).sqrt()
    assert deviations.abs().max() < 6
    assert deviations.square().mean().item() == pytest.approx(1, abs=0.1)


def test_della_without_range_keeps_large_and_small_alike() -> None:
    tau = update()
    masked_tau = masked(tau, "della_linear", epsilon=0, density=0.4, variant="paper")
    survived = masked_tau != 0
    torch.testing.assert_close(masked_tau[survived], tau[survived] / 0.4)
    large = tau.abs() > tau.abs().median()
    assert survived[large].double().mean().item() == pytest.approx(0.4, abs=5 * math.sqrt(0.48 / N))
    assert survived[~large].double().mean().item() == pytest.approx(0.4, abs=5 * math.sqrt(0.48 / N))


def test_models_have_masks_of_their_own() -> None:
    """Two equal updates, each halved at random: a quarter of the entries is kept in both."""
    tau = torch.ones(SHAPE)
    models = [{"w": tau}, {"w": tau}]
    options = {"weight": 1, "density": 0.5, "rescale": False}
    both = merge_state_dicts(models, base={"w": torch.zeros(SHAPE)}, method="dare_linear", **options)["w"]
    counts = torch.bincount(both.flatten().long(), minlength=3) / N
    torch.testing.assert_close(counts, torch.tensor([0.25, 0.5, 0.25]), rtol=0, atol=0.02)


def test_tensors_have_masks_of_their_own() -> None:
    tau = torch.ones(SHAPE)
    names = ("a", "b")
    model, base = dict.fromkeys(names, tau), {n: torch.zeros(SHAPE) for n in names}
    merged = merge_state_dicts([model], base=base, method="dare_linear", weight=1, density=0.5)
    assert 0.4 < ((merged["a"] != 0) == (merged["b"] != 0)).double().mean() < 0.6


@pytest.mark.parametrize(("method", "options"), [("dare_linear", {}), ("della_linear", {"epsilon": 0})])
def test_a_mask_is_the_stream_of_seed_name_and_model(method: str, options: dict) -> None:
    survived = masked(update(), method, seed=9, density=0.3, **options) != 0
    assert torch.equal(survived, random_mask(method, stream_key(9, "w", 0), torch.full(SHAPE, 0.3)))


def test_the_papers_ties_can_restore_the_l1_norm() -> None:
    tau = update()
    found = masked(tau, "ties", density=0.2, variant="paper", rescale=True)
    assert found.abs().sum().item() == pytest.approx(tau.abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("length", [512, 500, 8192])
def test_masks_that_are_kept_for_the_second_pass_are_those_that_are_made_again(
    length: int, tiny_chunks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_chunks(length)
    found = masked(update(), "della_linear", density=0.4, epsilon=0.3)
    monkeypatch.setattr("submerge.methods._magprune.REMEMBERED", 0)
    assert torch.equal(found, masked(update(), "della_linear", density=0.4, epsilon=0.3))
