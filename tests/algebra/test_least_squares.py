"""The identities of the least-squares merge (L1 to L15), each for tasks that are drawn at random."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _least_squares import PLAIN, Tasks, batch, make_tasks
from _updates import assert_close, densely, full, matrix, normal, rotated, rotation, streamed
from submerge.algebra import (
    LPM_PRESETS,
    BlockMoment,
    Dense,
    FactorMoment,
    LowRank,
    LpmOptions,
    Moment,
    Update,
    Zero,
    merge_least_squares,
)

SEEDS = st.integers(0, 10_000)
RIDGE = replace(PLAIN, ridge=1e-3)


def merged(tasks: Tasks, options: LpmOptions = RIDGE) -> torch.Tensor:
    return matrix(merge_least_squares(tasks.updates, tasks.moments, options))


def objective(tasks: Tasks, weight: torch.Tensor) -> float:
    """Return J = Σ ‖X_t (W − Δ_t)ᵀ‖²."""
    pairs = zip(tasks.inputs, tasks.updates, strict=True)
    return sum(float((x @ (weight - matrix(u)).T).square().sum()) for x, u in pairs)


def mean(updates: list[Update]) -> torch.Tensor:
    return torch.stack([matrix(u) for u in updates]).mean(0)


@given(SEEDS, st.booleans())
def test_l1_the_recursion_gives_the_batch_solution(seed: int, low_rank: bool) -> None:
    tasks = make_tasks(seed, 4, low_rank=low_rank)
    phi: Moment = tasks.moments[0].ridged(1e-3)
    weight = matrix(tasks.updates[0])
    for update, moment in zip(tasks.updates[1:], tasks.moments[1:], strict=True):
        ridged = moment.ridged(1e-3)
        phi = phi.added(ridged)
        weight = weight + phi.solve(ridged.times(matrix(update) - weight))
    assert_close(weight, batch(tasks, 1e-3), 1e-10)
    assert_close(merged(tasks), weight, 1e-10)


@given(SEEDS, st.permutations(range(4)))
def test_l2_any_order_gives_the_same(seed: int, order: list[int]) -> None:
    tasks = make_tasks(seed, 4)
    assert_close(merged(tasks.chosen(order)), merged(tasks), 1e-10)


@given(SEEDS)
def test_l3_the_covariance_form_gives_the_same(seed: int) -> None:
    tasks = make_tasks(seed)
    covariance = torch.eye(12, dtype=torch.float64) / 1e-3
    weight = torch.zeros(9, 12, dtype=torch.float64)
    for x, update in zip(tasks.inputs, tasks.updates, strict=True):
        inner = torch.eye(len(x), dtype=torch.float64) + x @ covariance @ x.T
        covariance = covariance - covariance @ x.T @ torch.linalg.solve(inner, x @ covariance)
        weight = weight + (matrix(update) - weight) @ x.T @ x @ covariance
    prior = FactorMoment(torch.zeros(0, 12, dtype=torch.float64), 1e-3, 0)
    start = BlockMoment(prior.times(torch.eye(12)).unsqueeze(0), 0)
    found = merge_least_squares([Zero((9, 12)), *tasks.updates], [start, *tasks.moments], PLAIN)
    assert_close(matrix(found), weight, 1e-4)


@given(SEEDS)
def test_l4_one_task_or_equal_updates_give_that_update(seed: int) -> None:
    tasks = make_tasks(seed)
    assert_close(merged(tasks.chosen([1])), matrix(tasks.updates[1]), 1e-10)
    assert_close(merged(Tasks(tasks.inputs, tasks.updates[:1] * 3)), matrix(tasks.updates[0]), 1e-10)


@given(SEEDS)
def test_l5_equal_inputs_or_a_large_ridge_give_the_mean(seed: int) -> None:
    tasks = make_tasks(seed)
    assert_close(merged(Tasks(tasks.inputs[:1] * 3, tasks.updates)), mean(tasks.updates), 1e-10)
    even = Tasks([x / x.norm() for x in tasks.inputs], tasks.updates)
    assert_close(merged(even, replace(RIDGE, ridge=1e12)), mean(tasks.updates), 1e-9)


@given(SEEDS)
def test_l6_the_weights_of_the_updates_sum_to_the_identity(seed: int) -> None:
    ridged = [moment.ridged(1e-3) for moment in make_tasks(seed).moments]
    phi = ridged[0].added(ridged[1]).added(ridged[2])
    weights = [phi.solve(moment.times(torch.eye(12))) for moment in ridged]
    assert_close(torch.stack(weights).sum(0), torch.eye(12), 1e-10)


@given(SEEDS)
def test_l7_tasks_on_disjoint_subspaces_forget_nothing(seed: int) -> None:
    tasks = make_tasks(seed)
    basis = rotation(seed, 12)
    inputs = [normal(seed + t, 30, 3) @ basis[:, 3 * t : 3 * t + 3].T for t in range(3)]  # 9 of 12 directions
    apart = Tasks(inputs, tasks.updates)
    scale = max(u.norm for u in tasks.updates) * max(float(x.norm()) for x in inputs)
    for options, error in ((PLAIN, 1e-12), (replace(PLAIN, ridge=1e-6), 1e-4)):
        found = merged(apart, options)
        for x, update in zip(inputs, tasks.updates, strict=True):
            assert float((x @ (found - matrix(update)).T).norm()) < error * scale


@given(SEEDS)
def test_l8_factors_give_the_dense_result_and_their_rank(seed: int) -> None:
    tasks = make_tasks(seed)
    low_rank = merge_least_squares(tasks.updates, tasks.moments, RIDGE)
    assert isinstance(low_rank, LowRank)
    assert low_rank.left.shape[1] == sum(u.rank for u in tasks.updates)
    for form in (densely, streamed):
        dense = merge_least_squares(form(tasks.updates), tasks.moments, RIDGE)
        assert isinstance(dense, Dense)
        assert_close(matrix(low_rank), matrix(dense), 1e-10)
    mixed = merge_least_squares([tasks.updates[0], *densely(tasks.updates[1:])], tasks.moments, RIDGE)
    assert_close(matrix(low_rank), matrix(mixed), 1e-10)


@given(SEEDS)
def test_l9_the_merge_is_the_minimum_of_the_objective(seed: int) -> None:
    tasks = make_tasks(seed)
    best = merged(tasks, PLAIN)
    residual = sum((best - matrix(u)) @ x.T @ x for x, u in zip(tasks.inputs, tasks.updates, strict=True))
    assert isinstance(residual, torch.Tensor)
    least = objective(tasks, best)
    assert residual.norm() < 1e-9 * sum(float(x.square().sum()) for x in tasks.inputs)
    other = best + normal(seed, 9, 12)
    phi = torch.stack([x.T @ x for x in tasks.inputs]).sum(0)
    excess = torch.trace((other - best) @ phi @ (other - best).T).item()
    assert objective(tasks, other) - least == pytest.approx(excess, rel=1e-8)
    assert least <= objective(tasks, mean(tasks.updates)) * (1 + 1e-12)
    assert least < objective(tasks, merged(tasks, replace(PLAIN, scale=3.0)))


@given(SEEDS)
def test_l10_states_add(seed: int) -> None:
    tasks = make_tasks(seed, 4)
    ridged: list[Moment] = [moment.ridged(1e-3) for moment in tasks.moments]
    products = [moment.times(matrix(u)) for u, moment in zip(tasks.updates, ridged, strict=True)]
    first, second = ridged[0].added(ridged[1]), ridged[2].added(ridged[3])
    joined = first.added(second).solve((products[0] + products[1]) + (products[2] + products[3]))
    assert_close(joined, merged(tasks), 1e-10)


@given(SEEDS, st.floats(0.5, 1.0))
def test_l11_forgetting_weighs_by_powers(seed: int, forget: float) -> None:
    tasks = make_tasks(seed, 4)
    phi, products = tasks.moments[0].scaled(0.0), torch.zeros(9, 12, dtype=torch.float64)
    for moment, update in zip(tasks.moments, tasks.updates, strict=True):
        phi = phi.scaled(forget).added(moment)
        products = forget * products + moment.times(matrix(update))
    found = merged(tasks, replace(PLAIN, forget=forget))
    assert_close(found, phi.solve(products), 1e-9)
    assert_close(found, batch(tasks, weights=[forget ** (3 - t) for t in range(4)]), 1e-9)


@given(SEEDS)
def test_l12_diagonal_moments_weigh_channels(seed: int) -> None:
    tasks = make_tasks(seed)
    moments = [BlockMoment.of(x, block=1) for x in tasks.inputs]
    weights = torch.stack([x.square().sum(0) for x in tasks.inputs])
    wanted = sum(matrix(u) * w / weights.sum(0) for u, w in zip(tasks.updates, weights, strict=True))
    assert isinstance(wanted, torch.Tensor)
    assert_close(matrix(merge_least_squares(tasks.updates, moments, PLAIN)), wanted, 1e-12)


def test_l12_rows_of_embeddings_are_weighed_by_counts() -> None:
    ids = [torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1])]
    tables = [normal(t, 3, 5) for t in range(2)]  # [tokens, width]
    one_hot = [torch.nn.functional.one_hot(i, 3).double() for i in ids]
    moments = [BlockMoment.of(x, block=1) for x in one_hot]
    found = matrix(merge_least_squares([Dense(table.T) for table in tables], moments, RIDGE)).T
    assert_close(found[0], 0.75 * tables[0][0] + 0.25 * tables[1][0], 1e-3)
    assert_close(found[2], (tables[0][2] + tables[1][2]) / 2, 1e-12)  # a token that neither saw


@given(SEEDS)
def test_l12_a_bias_is_the_weight_of_a_constant_input(seed: int) -> None:
    tasks = make_tasks(seed, low_rank=False)
    inputs = [torch.cat([x, torch.ones(len(x), 1)], dim=1) for x in tasks.inputs]
    updates: list[Update] = list(full((9, 13), 3, seed))
    outputs = torch.cat([x @ matrix(u).T for x, u in zip(inputs, updates, strict=True)])
    wanted = torch.linalg.lstsq(torch.cat(inputs), outputs).solution.T
    assert_close(merged(Tasks(inputs, updates), PLAIN), wanted, 1e-9)


@given(SEEDS)
def test_l13_truncated_moments_solve_the_truncated_problem(seed: int) -> None:
    tasks = make_tasks(seed)
    pseudo_inputs = []
    for x in tasks.inputs:
        _, s, vh = torch.linalg.svd(x, full_matrices=False)
        shares = s.square().cumsum(0) / s.square().sum()
        p = int((shares < 0.9).sum()) + 1
        pseudo_inputs.append(s[:p].unsqueeze(1) * vh[:p])
    truncated = Tasks(pseudo_inputs, tasks.updates)
    assert_close(merged(tasks, replace(RIDGE, energy=0.9)), batch(truncated, 1e-3), 1e-9)
    assert_close(merged(tasks, replace(RIDGE, energy=1 - 1e-15)), merged(tasks), 1e-8)
    low_rank: list[Moment] = [moment.truncated(1.0) for moment in tasks.moments]
    assert_close(matrix(merge_least_squares(tasks.updates, low_rank, RIDGE)), merged(tasks), 1e-8)


@given(SEEDS)
def test_l14_the_gauge_of_the_factors_and_rotations_of_the_inputs(seed: int) -> None:
    tasks = make_tasks(seed)
    regauged: list[Update] = []
    for t, update in enumerate(tasks.updates):
        assert isinstance(update, LowRank)
        gauge = torch.eye(update.rank, dtype=torch.float64) + 0.2 * rotation(seed + t, update.rank)
        regauged.append(LowRank(update.left @ gauge.inverse(), gauge @ update.right))
    assert_close(merged(Tasks(tasks.inputs, regauged)), merged(tasks), 1e-10)
    turn = rotation(seed, 12)
    identity = torch.eye(9, dtype=torch.float64)
    turned = Tasks([x @ turn.T for x in tasks.inputs], rotated(tasks.updates, identity, turn))
    assert_close(merged(turned), merged(tasks) @ turn.T, 1e-9)


def test_l15_the_scale_is_a_factor_and_0_is_the_base() -> None:
    tasks = make_tasks(0)
    assert not merged(tasks, replace(RIDGE, scale=0.0)).any()
    assert_close(merged(tasks, replace(RIDGE, scale=3.0)), 3 * merged(tasks), 1e-12)


@pytest.mark.parametrize("absent", [None, Zero((9, 12))])
def test_a_task_without_an_update_counts_as_zero_or_is_left_out(absent: Update | None) -> None:
    tasks = make_tasks(0)
    updates = [absent, *tasks.updates[1:]]
    zero = matrix(merge_least_squares(updates, tasks.moments, RIDGE))
    nothing = LowRank(normal(1, 9, 1), torch.zeros(1, 12, dtype=torch.float64))
    assert_close(zero, merged(Tasks(tasks.inputs, [nothing, *tasks.updates[1:]])))
    skip = matrix(merge_least_squares(updates, tasks.moments, replace(RIDGE, missing="skip")))
    assert_close(skip, merged(tasks.chosen([1, 2])))


def test_per_token_is_blind_to_the_length_of_a_task() -> None:
    tasks = make_tasks(0)
    longer = Tasks([torch.cat([tasks.inputs[0]] * 5), *tasks.inputs[1:]], tasks.updates)
    default = LpmOptions()
    assert_close(merged(longer, default), merged(tasks, default), 1e-10)
    assert (merged(longer) - merged(tasks)).norm() > 1e-3


def test_identity_moments_give_means_weighed_by_tokens() -> None:
    updates = make_tasks(0).updates
    moments = [FactorMoment.identity(12, count) for count in (1, 2, 5)]
    wanted = sum(c / 8 * matrix(u) for c, u in zip((1, 2, 5), updates, strict=True))
    assert isinstance(wanted, torch.Tensor)
    assert_close(matrix(merge_least_squares(updates, moments, PLAIN)), wanted, 1e-12)
    assert_close(matrix(merge_least_squares(updates, moments)), mean(updates), 1e-12)


def test_off_diagonal_elements_are_shrunk() -> None:
    tasks = make_tasks(0)
    moments = [x.T @ x for x in tasks.inputs]
    shrunk = [0.9 * c + 0.1 * c.diag().diag() for c in moments]
    sums = sum(matrix(u) @ c for u, c in zip(tasks.updates, shrunk, strict=True))
    assert isinstance(sums, torch.Tensor)
    assert_close(
        merged(tasks, replace(PLAIN, offdiag=0.9)), sums @ torch.stack(shrunk).sum(0).inverse(), 1e-9
    )


def test_the_result_has_the_dtype_of_the_updates() -> None:
    tasks = make_tasks(0)
    rounded = [LowRank(u.left.float(), u.right.float()) for u in tasks.updates if isinstance(u, LowRank)]
    low_rank = merge_least_squares(rounded, tasks.moments)
    assert isinstance(low_rank, LowRank)
    assert low_rank.left.dtype == low_rank.right.dtype == torch.float32
    assert merge_least_squares(densely(rounded), tasks.moments).dense().dtype == torch.float32
    assert_close(matrix(low_rank), merged(tasks, LpmOptions()), 1e-5)


def test_moments_may_be_read_one_at_a_time() -> None:
    tasks = make_tasks(0)
    found = merge_least_squares(tasks.updates, iter(tasks.moments), RIDGE)
    assert torch.equal(matrix(found), merged(tasks))


def test_the_preset_of_the_paper() -> None:
    options = LpmOptions(**LPM_PRESETS["paper"])  # type: ignore[arg-type]
    assert (options.scale, options.energy) == (3.0, 0.999)
    assert LpmOptions(**LPM_PRESETS["default"]) == LpmOptions()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["energy", "forget"], [0.0, 1.1]),
        *itertools.product(["offdiag"], [-0.1, 1.1]),
        ("ridge", -1.0),
        ("normalize", "rows"),
        ("missing", "mean"),
        ("ridge", float("inf")),
        ("ridge", float("nan")),
        ("scale", float("inf")),
        ("scale", float("nan")),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        LpmOptions(**{name: value})  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    tasks = make_tasks(0)
    with pytest.raises(ValueError, match="no task has an update"):
        merge_least_squares([None, Zero((9, 12))], tasks.moments[:2])
    with pytest.raises(ValueError, match="no task has inputs"):
        merge_least_squares(tasks.updates[:1], [BlockMoment.of(torch.zeros(0, 12))])
    with pytest.raises(ValueError, match="does not meet a moment"):
        merge_least_squares([Dense(torch.ones(2, 5))], tasks.moments[:1])
    with pytest.raises(ValueError, match="do not add"):
        merge_least_squares(tasks.updates[:2], [tasks.moments[0], BlockMoment.of(tasks.inputs[1], block=1)])
