"""Banks of factors and the merges of their subsets: what must hold whatever the updates are."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _mass_reference import polar
from _updates import rotation
from submerge.algebra import CORES, Bank, Triplets, Update

SHAPES = [(24, 16), (16, 24), (20, 20)]


def triplets(update: torch.Tensor, r: int) -> Triplets:
    u, s, vh = torch.linalg.svd(update.double(), full_matrices=False)
    return Triplets(u[:, :r].contiguous(), s[:r], vh[:r].contiguous())


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bank(shape: tuple[int, int], count: int, r: int, seed: int = 0) -> Bank:
    return Bank(shape, {t: triplets(normal(seed + t, *shape), r) for t in range(count)})


def dense(found: Update) -> torch.Tensor:
    return found.dense().double()


def close(a: torch.Tensor, b: torch.Tensor, share: float = 1e-5) -> None:
    assert (a - b).norm() <= share * max(1.0, b.norm().item())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("r", [1, 4, 16])
def test_one_task_is_its_truncated_update(shape: tuple[int, int], r: int) -> None:
    update = normal(1, *shape)
    one = Bank(shape, {3: triplets(update, r)})
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    close(dense(one.merged([3])), u[:, :r] @ s[:r].diag() @ vh[:r])
    if r == min(shape):
        close(dense(one.merged([3])), update)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 5), st.sampled_from(SHAPES))
def test_cores_are_those_of_the_polar_factors(seed: int, count: int, r: int, shape: tuple[int, int]) -> None:
    made = bank(shape, count, r, seed)
    u = torch.cat([p.left for p in made.parts.values()], dim=1)
    s = torch.cat([p.values for p in made.parts.values()])
    v = torch.cat([p.right for p in made.parts.values()])
    wanted = polar(u) @ s.diag() @ polar(v.T).T
    found = u @ made.core(tuple(range(count)), "tsv_m").matrix @ v
    if count * r <= min(shape):
        assert (found - wanted).norm() < 1e-6 * wanted.norm()
        ones = torch.ones(count * r).double()
        left = u @ CORES["tsv_m"](u.T @ u, ones, ones.diag(), 1e-9).left
        assert (left.T @ left - torch.eye(count * r)).abs().max() < 1e-6


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 4), st.sampled_from(SHAPES))
def test_the_merge_keeps_the_singular_values(seed: int, count: int, r: int, shape: tuple[int, int]) -> None:
    made = bank(shape, count, r, seed)
    kept = torch.cat([p.values for p in made.parts.values()]).sort(descending=True).values
    found = torch.linalg.svdvals(dense(made.merged(range(count))))
    assert (found[: len(kept)] - kept).abs().max() < 1e-4 * kept[0]
    assert found.sum() == pytest.approx(float(kept.sum()), rel=1e-4)  # the nuclear norm


@given(st.integers(0, 10**6), st.sampled_from(["tsv_m", "iso_c", "sum"]))
def test_the_order_of_tasks_makes_no_difference(seed: int, rule: str) -> None:
    made = bank((16, 24), 3, 3, seed)
    for order in permutations(range(3)):
        assert torch.equal(made.merged(order, rule).dense(), made.merged((0, 1, 2), rule).dense())
    assert all(i <= j for _, _, i, j in made._cache), "one block for two tasks, whatever their order"


def test_orthogonal_subspaces_are_summed() -> None:
    u, v = rotation(1, 24), rotation(2, 16)
    parts = {
        t: Triplets(u[:, 3 * t : 3 * t + 3], normal(t, 3).abs() + 1, v[:, 3 * t : 3 * t + 3].T)
        for t in range(4)
    }
    made = Bank((24, 16), parts)
    plain = sum(dense(made.merged([t])) for t in range(4))
    close(dense(made.merged(range(4))), plain)
    close(dense(made.merged(range(4), "sum")), plain)


def test_copies_of_a_task_merge_to_it() -> None:
    one = triplets(normal(1, 24, 16), 4)
    made = Bank((24, 16), {0: one, 1: one, 2: one})
    close(dense(made.merged([0, 1, 2])), dense(made.merged([0])))


def alike(angle: float, seed: int = 0) -> Bank:
    """Return a bank of two tasks, in float32, whose first directions are that angle apart on both sides."""
    left, right = rotation(seed + 1, 48), rotation(seed + 2, 32)
    others = rotation(seed + 1, 48)[:, 6:12], rotation(seed + 2, 32)[:, 6:12]
    u, v = left[:, :6].clone(), right[:, :6].clone()
    for mine, other in zip((u, v), others, strict=True):
        mine[:, 3:] = other[:, 3:]
        mine[:, :3] = math.cos(angle) * mine[:, :3] + math.sin(angle) * other[:, :3]
    s = torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0, 0.5])
    parts = {
        0: Triplets(left[:, :6].float().contiguous(), s, right[:, :6].T.float().contiguous()),
        1: Triplets(u.float(), s.flip(0), v.T.float().contiguous()),
    }
    return Bank((48, 32), parts)


def exactly(made: Bank, rule: str) -> torch.Tensor:
    """Return the merge of the stored factors by SVDs of the stacks in float64."""
    u = torch.cat([p.left.double() for p in made.parts.values()], dim=1)
    s = torch.cat([p.values.double() for p in made.parts.values()])
    v = torch.cat([p.right.double() for p in made.parts.values()])
    if rule == "tsv_m":
        return polar(u) @ s.diag() @ polar(v.T).T
    p, level, qh = torch.linalg.svd(u @ s.diag() @ v, full_matrices=False)
    held = level > 1e-6 * level[0]
    return level[held].mean() * p[:, held] @ qh[held]


@pytest.mark.parametrize("rule", ["tsv_m", "iso_c"])
@pytest.mark.parametrize("angle", [1e-2, 1e-3, 1e-4])
def test_nearly_equal_directions_lose_nothing(rule: str, angle: float) -> None:
    made = alike(angle)
    wanted = exactly(made, rule)
    assert made.core((0, 1), rule).condition > 1 / angle
    assert (dense(made.merged((0, 1), rule)) - wanted).norm() < 1e-6 * wanted.norm()


def test_iso_c_flattens_the_spectrum() -> None:
    made = bank((24, 16), 3, 3)
    found = torch.linalg.svdvals(dense(made.merged(range(3), "iso_c")))
    total = torch.linalg.svdvals(dense(made.merged(range(3), "sum")))
    assert (found[:9] - total[:9].mean()).abs().max() < 1e-4
    assert found[9:].abs().max() < 1e-4


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_the_cosine_is_that_of_the_matrices(seed: int, a: int, b: int) -> None:
    made = Bank((20, 20), {0: triplets(normal(seed, 20, 20), a), 5: triplets(normal(seed + 1, 20, 20), b)})
    x, y = dense(made.merged([0])), dense(made.merged([5]))
    assert made.cosine(0, 5) == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), abs=1e-5)
    assert made.cosine(0, 1) == 0.0, "a zero update is like no other"


def test_a_task_that_does_not_touch_the_weight_adds_nothing() -> None:
    made = bank((24, 16), 2, 3)
    assert made.members([1, 7, 0]) == (0, 1)
    close(dense(made.merged([0, 7])), dense(made.merged([0])))
    assert made.merged([7]).rank == 0
