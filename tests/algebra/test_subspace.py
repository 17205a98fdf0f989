"""Shared subspaces and leading eigenvectors: by decomposition, by iteration, and where that gives up."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from _updates import (
    FILLING,
    SHAPES,
    adapters,
    assert_close,
    densely,
    full,
    matrix,
    normal,
    rotation,
    streamed,
)
from submerge.algebra import Dense, LowRank, RankRule, Update, Zero, leading, shared_subspace
from submerge.algebra import _leading as module


def summed(updates: Sequence[Update], side: str) -> torch.Tensor:
    parts = [matrix(u) for u in updates]
    return sum(x @ x.T if side == "left" else x.T @ x for x in parts)


def projector(vectors: torch.Tensor) -> torch.Tensor:
    return vectors @ vectors.T


def top(gram: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", [list, densely, streamed])
def test_leading_eigenvectors(shape: tuple[int, int], side: str, form: Any) -> None:
    updates = form(adapters(shape))
    gram = summed(updates, side)
    for k in (1, 3, 5):
        values, vectors = top(gram, k + 1)
        found = leading(updates, side, k)
        assert found.vectors.shape[1] == min(k, len(gram))
        assert_close(projector(found.vectors), projector(vectors[:, :k]), 1e-9)
        assert_close(found.values[:k], values[:k], 1e-11)
        assert found.trace == pytest.approx(float(gram.trace()))
        assert found.kept(k) == pytest.approx(float(values[:k].sum() / gram.trace()))


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_more_than_the_numerical_rank(side: str) -> None:
    updates = densely(adapters((24, 30)))
    assert leading(updates, side, 99).vectors.shape[1] == 9
    assert leading([Zero((24, 30))], side, 3).vectors.shape[1] == 0
    found = leading([Dense(torch.zeros(4, 5))] * 2, side, 3)
    assert (found.vectors.shape[1], found.kept(3), found.enough(0.9)) == (0, 1.0, 0)


def test_enough_and_tied() -> None:
    u, values = rotation(1, 8), [4.0, 2, 2, 2, 1, 1, 1, 1]
    found = leading([LowRank(u * torch.tensor(values, dtype=torch.float64).sqrt(), u.T)], "left", 8)
    assert_close(found.values, torch.tensor(values, dtype=torch.float64))
    assert [found.enough(x / 14) for x in (1, 4, 4.1, 6, 10, 14)] == [1, 1, 2, 2, 4, 8]
    assert [found.tied(k) for k in (0, 1, 2, 3, 4, 5, 8)] == [False, False, True, True, False, True, False]


def decaying(shape: tuple[int, int], power: float, seed: int) -> Update:
    """Return an update whose j-th singular value is j^(−power)."""
    k = min(shape)
    u = torch.linalg.qr(normal(seed, shape[0], k))[0]
    v = torch.linalg.qr(normal(seed + 1, shape[1], k))[0]
    return Dense((u * torch.arange(1, k + 1, dtype=torch.float64) ** -power) @ v.T)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the iteration returned, and how often all eigenvectors were computed."""
    found: dict[str, list[Any]] = {"iterated": []}
    original = module.krylov_eigenpairs

    def watched(*args: Any) -> Any:
        result = original(*args)
        found["iterated"].append(result)
        return result

    monkeypatch.setattr(module, "krylov_eigenpairs", watched)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", [densely, streamed])
def test_iteration_finds_what_decays(side: str, form: Any, calls: dict[str, list[Any]]) -> None:
    updates = form([decaying((600, 640), 1.5, 10 * t) for t in range(2)])
    found = leading(updates, side, 12)
    assert calls["iterated"][-1] is not None
    values, vectors = top(summed(updates, side), 13)
    assert_close(projector(found.vectors), projector(vectors[:, :12]), 1e-6)
    assert_close(found.values, values, 1e-9)
    assert not found.tied(12)
    again = leading(updates, side, 12)
    assert torch.equal(again.vectors, found.vectors), "the start is drawn from a fixed seed"


@pytest.mark.parametrize("side", ["left", "right"])
def test_iteration_finds_what_is_of_low_rank(side: str, calls: dict[str, list[Any]]) -> None:
    updates = densely(adapters((600, 640), [4, 3]))
    found = leading(updates, side, 20)
    assert calls["iterated"][-1] is not None
    assert found.vectors.shape[1] == 7
    assert_close(projector(found.vectors), projector(top(summed(updates, side), 7)[1]), 1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_flat_spectra_are_decomposed_whole(side: str, calls: dict[str, list[Any]]) -> None:
    updates = full((720, 730), 2)
    found = leading(updates, side, 12)
    assert calls["iterated"] == [None], "it does not settle, and says so"
    values, vectors = top(summed(updates, side), 13)
    assert_close(projector(found.vectors), projector(vectors[:, :12]), 1e-8)
    assert_close(found.values, values, 1e-11)


def test_many_directions_are_not_worth_an_iteration(calls: dict[str, list[Any]]) -> None:
    leading(full((600, 520), 2), "left", 200)
    assert calls["iterated"] == []


def test_energy_needs_all_values(calls: dict[str, list[Any]]) -> None:
    leading([decaying((600, 520), 2, 0)], "left", 20, 0.9)
    assert calls["iterated"] == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [list, densely, streamed])
def test_shared_subspace_solves_both_least_squares_problems(shape: tuple[int, int], form: Any) -> None:
    updates = form(adapters(shape))
    found = shared_subspace(updates, RankRule("int", 4))
    energy = sum(u.norm**2 for u in updates)
    for basis, side, kept in ((found.u, "left", found.kept_left), (found.v, "right", found.kept_right)):
        values, vectors = top(summed(updates, side), 4)
        assert_close(projector(basis), projector(vectors), 1e-9)
        assert kept == pytest.approx(float(values.sum()) / energy)
    for update in updates:
        assert_close(found.core(update), found.u.T @ matrix(update) @ found.v, 1e-12)
    assert found.core(Zero(shape)).count_nonzero() == 0


def test_norms_take_the_lengths_out() -> None:
    updates = adapters((24, 30))
    scaled = [updates[0].scaled(100), updates[1].scaled(0.1), updates[2]]
    units = [u.scaled(1 / u.norm) for u in updates]
    wanted = shared_subspace(units, RankRule("int", 3))
    found = shared_subspace(scaled, RankRule("int", 3), norms=[u.norm for u in scaled])
    assert_close(projector(found.u), projector(wanted.u))
    assert_close(projector(found.v), projector(wanted.v))
    zero = [*units, Zero((24, 30))]
    assert_close(
        projector(shared_subspace(zero, RankRule("int", 3), norms=[1, 1, 1, 0]).u), projector(wanted.u)
    )


def test_refined_bases_are_orthonormal_and_better() -> None:
    updates = full((24, 30), 4)
    errors = []
    for refine in (0, 1, 3, 9):
        found = shared_subspace(updates, RankRule("int", 4), refine=refine)
        for basis in (found.u, found.v):
            assert_close(basis.T @ basis, torch.eye(4), 1e-12)
        kept = sum(float(found.core(u).square().sum()) for u in updates)
        errors.append(sum(u.norm**2 for u in updates) - kept)
        whole = sum(u.norm**2 for u in updates)
        assert found.kept_left == pytest.approx(
            sum(float(u.rmatmul(found.u.T).square().sum()) for u in updates) / whole
        )
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("16", "int", 16),
        (3, "int", 3),
        (" max ", "max", 0),
        ("full", "full", 0),
        ("energy:0.95", "energy", 0.95),
        ("frac:1", "frac", 1),
    ],
)
def test_rank_rules_are_read(text: str | int, kind: str, value: float) -> None:
    assert RankRule.parse(text) == RankRule(kind, value)


WRONG = ["", "0", "-3", "2.5", "most", "max:3", "energy", "energy:", "energy:0", "energy:1.1"]
WRONG += ["frac:nan", "frac:-1", "full:1", "int:3"]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_rank_rules_are_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="rank must be a positive whole number, max, full, energy:τ or frac:p"
    ):
        RankRule.parse(text)


def test_bounds_of_rank_rules() -> None:
    updates = adapters((24, 30), [3, 0, 4, 2])
    bounds = {"16": 9, "2": 2, "max": 4, "full": 9, "frac:0.5": 4, "frac:0.01": 1, "energy:0.5": 9}
    assert {text: RankRule.parse(text).bound(updates) for text in bounds} == bounds
