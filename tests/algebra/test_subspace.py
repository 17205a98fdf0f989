"""Shared subspaces solve the least-squares problems that define them; rules of rank."""

from typing import Any

import pytest
import torch

from _eigen import projector, summed, top
from _updates import SHAPES, adapters, assert_close, densely, full, matrix, streamed
from submerge.algebra import RankRule, Zero, shared_subspace


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
