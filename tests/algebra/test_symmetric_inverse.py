"""Least squares where moments are badly conditioned: outlier channels, few directions, sums in float32."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _updates import adapters, assert_close, densely, matrix, normal
from submerge.algebra import (
    BlockMoment,
    LpmOptions,
    Moment,
    ProductSum,
    TriangleMoment,
    Update,
    merge_least_squares,
)
from submerge.algebra._symmetric_inverse import SymmetricInverse

N, TASKS, RIDGE = 48, 3, 1e-3
SEEDS = st.integers(0, 10_000)
KINDS = st.sampled_from(["outlier", "mean", "few", "nearly few"])
COUNTS = st.sampled_from([20, 200])
"""Rows of a task: fewer than inputs, and more."""


def inputs(kind: str, seed: int, count: int) -> torch.Tensor:
    """Return rows [count, N] as language models have them, or of directions fewer than N."""
    rows = normal(seed, count, N)
    if kind == "outlier":
        rows[:, seed % N] *= 1e4
    elif kind == "mean":
        rows += 100
    else:
        rows = rows[:, : N // 4] @ normal(seed + 1, N // 4, N)
        rows += (1e-9 if kind == "nearly few" else 0.0) * normal(seed + 2, count, N)
    return rows


def by_lstsq(updates: Sequence[Update], rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the merge from the inputs themselves, by an orthogonal factorisation, which squares nothing."""
    parts = []
    for x in rows:
        scaled = x / len(x) ** 0.5
        ridge = RIDGE * float(scaled.square().sum()) / N
        parts.append(torch.cat([scaled, ridge**0.5 * torch.eye(N, dtype=torch.float64)]))
    outputs = [z @ matrix(update).T for z, update in zip(parts, updates, strict=True)]
    return torch.linalg.lstsq(torch.cat(parts), torch.cat(outputs)).solution.T


def in_float32(x: torch.Tensor) -> TriangleMoment:
    products = ProductSum(N, torch.float32)
    for batch in x.float().split(64):
        products.add(batch)
    return TriangleMoment(products.triangle, len(x))


def far(found: torch.Tensor, wanted: torch.Tensor, rows: Sequence[torch.Tensor]) -> float:
    """Return the largest relative error of the responses to a task's inputs."""
    return max(float((x @ (found - wanted).T).norm() / (x @ wanted.T).norm()) for x in rows)


@given(SEEDS, KINDS, COUNTS)
def test_factors_and_dense_updates_give_one_merge(seed: int, kind: str, count: int) -> None:
    """To 1e-10, with the ridge that is the default, as do the inputs themselves."""
    rows = [inputs(kind, seed + 10 * t, count) for t in range(TASKS)]
    updates = adapters((9, N), [2] * TASKS, seed)
    low_rank = matrix(merge_least_squares(updates, [TriangleMoment.of(x) for x in rows]))
    dense = matrix(merge_least_squares(densely(updates), [BlockMoment.of(x) for x in rows]))
    assert_close(low_rank, dense, 1e-10)
    assert_close(low_rank, by_lstsq(updates, rows), 1e-9)


@given(SEEDS, KINDS, COUNTS)
def test_sums_in_float32_answer_as_those_in_float64(seed: int, kind: str, count: int) -> None:
    """To 1e-3 of the responses where the mean of the inputs is 100 times their spread, else to 1e-5."""
    rows = [inputs(kind, seed + 10 * t, count) for t in range(TASKS)]
    updates = adapters((9, N), [2] * TASKS, seed)
    wanted = by_lstsq(updates, rows)
    read: list[Moment] = [Moment.from_tensors(in_float32(x).tensors()) for x in rows]
    error = 1e-3 if kind == "mean" else 1e-5
    assert far(matrix(merge_least_squares(updates, read)), wanted, rows) < error
    assert far(_running(updates, rows), wanted, rows) < error


def _running(updates: Sequence[Update], rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the merge where the sum of the moments alone is held, in float32, as are the A C."""
    options = LpmOptions()
    moments: list[Moment] = [options.prepared(in_float32(x)) for x in rows]
    products = [moment.times(matrix(update)).float() for update, moment in zip(updates, moments, strict=True)]
    phi = Moment.from_tensors(moments[0].added(moments[1]).added(moments[2]).tensors())
    return phi.solve(torch.stack(products).double().sum(0))


@given(SEEDS, KINDS)
def test_one_task_is_its_update_however_its_inputs_are(seed: int, kind: str) -> None:
    update = adapters((9, N), [3], seed)
    moment = Moment.from_tensors(in_float32(inputs(kind, seed, 20)).tensors())
    assert_close(matrix(merge_least_squares(update, [moment])), matrix(update[0]), 1e-8)


@pytest.mark.parametrize("outlier", [1e4, 1e-4])
def test_the_condition_number_is_told(outlier: float) -> None:
    rows = normal(0, 200, N)
    rows[:, 5] *= outlier
    moment = LpmOptions().prepared(TriangleMoment.of(rows))
    values = torch.linalg.eigvalsh(moment.times(torch.eye(N)))
    assert moment.condition() == pytest.approx((values[-1] / values[0]).item(), rel=0.1)
    assert moment.largest() == pytest.approx(values[-1].item(), rel=0.05)


def test_the_lower_triangles_are_all_that_is_read() -> None:
    c = torch.stack([x.T @ x for x in (normal(0, 30, 6), normal(1, 30, 6))])
    above = torch.full((6, 6), torch.nan, dtype=torch.float64).triu(1)
    right = normal(2, 2, 6).expand(2, 2, 6)
    inverse = SymmetricInverse(lambda: c.tril() + above)
    assert not inverse.singular
    assert_close(inverse.applied(right), right @ c.inverse(), 1e-10)
