"""WUDI in closed form against plain computations, descent on its objective, and its known limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from _updates import (
    FILLING,
    SHAPES,
    adapters,
    assert_close,
    densely,
    fold,
    formula,
    full,
    matrix,
    merged,
    normal,
    rotated,
    rotation,
    streamed,
)
from submerge.algebra import Dense, LowRank, Update, Zero
from submerge.methods import METHODS, TensorSpec

LIMIT: dict[str, Any] = {"time": 1e15, "fraction": 1.0}
"""Every direction at its end: the minimum of the objective."""
OPTIONS: list[dict[str, Any]] = [
    {},
    {"time": 0.5},
    {"time": 2.0, "fraction": 0.2, "weight": [0.5, -1.0, 2.0], "scale": 1.5},
    {"variant": "aswudi"},
    {"variant": "aswudi", "weight": [0.5, -1.0, 2.0]},
]


def total(updates: Sequence[Update]) -> torch.Tensor:
    return sum((matrix(u) for u in updates), torch.zeros(updates[0].shape, dtype=torch.float64))


def loss(delta: torch.Tensor, updates: Sequence[Update]) -> torch.Tensor:
    """Return WUDI's objective ½ Σ ‖(Δ − Δ_t) Δ_tᵀ‖² / ‖Δ_t‖², as the paper writes it (but for the ½)."""
    terms = [((delta - x) @ x.T).square().sum() / x.square().sum() for x in map(matrix, updates)]
    return torch.stack(terms).sum() / 2


def slope(delta: torch.Tensor, updates: Sequence[Update]) -> torch.Tensor:
    """Return the gradient of the objective at Δ, by autograd."""
    point = delta.clone().requires_grad_()
    loss(point, updates).backward()
    assert point.grad is not None
    return point.grad


# --- the formula ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("o", OPTIONS, ids=str)
@pytest.mark.parametrize("bank", [adapters, full])
def test_it_is_its_formula(shape: tuple[int, int], o: dict[str, Any], bank: Any) -> None:
    updates = bank(shape)
    assert_close(merged("wudi", updates, **o), formula("wudi", updates, **o), 1e-7)


def literal(updates: Sequence[Update], f: torch.Tensor) -> torch.Tensor:
    """Return the equation with C, D and C⁺ as matrices, for f by ascending eigenvalue."""
    deltas = [matrix(u) for u in updates]
    c = sum(x.T @ x / x.square().sum() for x in deltas)
    d = sum(x @ x.T @ x / x.square().sum() for x in deltas)
    vectors = torch.linalg.eigh(c)[1]
    start = total(updates)
    return start + (d @ torch.linalg.inv(c) - start) @ vectors @ torch.diag(f) @ vectors.T


@pytest.mark.parametrize("shape", [(24, 16), (20, 20)])
def test_swudi_as_the_authors_write_it(shape: tuple[int, int]) -> None:
    updates = full(shape)
    values = torch.linalg.eigvalsh(sum(matrix(u).T @ matrix(u) / matrix(u).square().sum() for u in updates))
    leading = -(-65 * shape[1] // 100)
    f = (1 - torch.exp(-values * 1300)) * (torch.arange(shape[1]) >= shape[1] - leading)
    assert_close(merged("wudi", updates), literal(updates, f))
    assert fold("wudi", updates).figures["k"] == leading


@pytest.mark.parametrize("shape", [(24, 16), (20, 20)])
def test_aswudi_as_the_authors_write_it(shape: tuple[int, int]) -> None:
    decay = 0.8 ** torch.arange(shape[1], dtype=torch.float64)
    updates = [Dense(matrix(u) * decay) for u in full(shape)]
    values = torch.linalg.eigvalsh(sum(matrix(u).T @ matrix(u) / matrix(u).square().sum() for u in updates))
    leading = int(torch.ceil(values.sqrt().sum() ** 2 / values.sum()))
    assert 1 < leading < shape[1]
    f = (torch.arange(shape[1]) >= shape[1] - leading).double()
    assert_close(merged("wudi", updates, variant="aswudi"), literal(updates, f))


# --- the objective ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bank", "shape"), [(adapters, (14, 40)), (full, (40, 9)), (full, (9, 14))])
def test_at_the_end_of_time_it_is_the_minimum_that_descent_finds(bank: Any, shape: tuple[int, int]) -> None:
    """Descent from the sum by steps of 1 / λ_1, which leave 1 − λ_i / λ_1 of direction i's way each."""
    updates = bank(shape)
    found = merged("wudi", updates, **LIMIT)
    assert slope(found, updates).norm() < 1e-9 * slope(total(updates), updates).norm()
    c = sum(matrix(u).T @ matrix(u) / matrix(u).square().sum() for u in updates)
    point, step = total(updates), 1 / float(torch.linalg.eigvalsh(c)[-1])
    for _ in range(1000):
        point -= step * slope(point, updates)
    assert_close(point, found, 1e-6)


@pytest.mark.parametrize("time", [0.3, 2.0, 10.0])
def test_at_a_time_it_is_where_the_gradient_flow_is(time: float) -> None:
    """Runge and Kutta's fourth order on dΔ/dt = −∇L, from the sum."""
    updates = full((7, 6))
    point, h = total(updates), time / 400
    for _ in range(400):
        a = -slope(point, updates)
        b = -slope(point + h / 2 * a, updates)
        c = -slope(point + h / 2 * b, updates)
        d = -slope(point + h * c, updates)
        point = point + h / 6 * (a + 2 * b + 2 * c + d)
    assert_close(merged("wudi", updates, time=time, fraction=1.0), point, 1e-7)


def test_the_objective_falls_with_time() -> None:
    updates = full((12, 10))
    folds = [fold("wudi", updates, time=t, fraction=1.0) for t in (0, 0.1, 1, 10, 1e15)]
    losses = [float(loss(matrix(one.update), updates)) for one in folds]
    assert losses == sorted(losses, reverse=True)
    solved = [one.figures["solved"] for one in folds]
    assert solved == sorted(solved)
    assert (solved[0], round(solved[-1], 12)) == (0, 1)


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("o", [{"time": 0}, {"fraction": 0}], ids=str)
@pytest.mark.parametrize("bank", [adapters, full])
def test_nothing_moved_is_the_sum(o: dict[str, Any], bank: Any) -> None:
    updates = bank((24, 30))
    assert_close(merged("wudi", updates, **o), total(updates))


@pytest.mark.parametrize("o", [o for o in OPTIONS if "weight" not in o], ids=str)
def test_one_model_is_that_model(o: dict[str, Any]) -> None:
    for (update,) in (adapters((24, 30), [3]), full((12, 9), 1), full((9, 12), 1)):
        assert_close(merged("wudi", [update], **o), matrix(update), 1e-8)
        assert_close(merged("wudi", [update, Zero(update.shape)], **o), matrix(update), 1e-8)


def test_copies_of_one_model_are_that_model_at_the_end() -> None:
    for (update,) in (adapters((24, 30), [3]), full((12, 9), 1)):
        assert_close(merged("wudi", [update] * 4, **LIMIT), matrix(update), 1e-7)
        assert_close(merged("wudi", [update] * 4, time=0), 4 * matrix(update))


@pytest.mark.parametrize("o", [o for o in OPTIONS if "weight" not in o], ids=str)
def test_updates_of_orthogonal_inputs_are_summed(o: dict[str, Any]) -> None:
    """No update acts on the inputs of another one: the sum disturbs nobody."""
    v = rotation(1, 30)
    updates = [LowRank(normal(t, 24, 3), v[:, 3 * t : 3 * t + 3].T) for t in range(3)]
    assert_close(merged("wudi", updates, **o), total(updates), 1e-8)


@pytest.mark.parametrize("variant", ["swudi", "aswudi"])
def test_the_length_of_an_update_decides_nothing_about_the_directions(variant: str) -> None:
    """A longer update is the same as one with a weight: C has the updates at length 1."""
    updates = full((24, 30))
    longer = [u.scaled(s) for u, s in zip(updates, [0.01, 5.0, -3.0], strict=True)]
    assert_close(
        merged("wudi", longer, variant=variant),
        merged("wudi", updates, variant=variant, weight=[0.01, 5.0, -3.0]),
        1e-8,
    )


def test_every_direction_counts_once_where_all_are_equal() -> None:
    """(Σ √λ)² / Σ λ is the number of directions then, and is not taken for one more by rounding."""
    u, v = rotation(1, 24), rotation(2, 30)
    updates = [LowRank(u[:, :5], v[:, 5 * t : 5 * t + 5].T) for t in range(3)]
    assert fold("wudi", updates, variant="aswudi").figures["k"] == 15
    (one,) = adapters((24, 30), [1])
    assert fold("wudi", [one], variant="aswudi").figures == {"k": 1, "solved": pytest.approx(1.0)}


@pytest.mark.parametrize(("fraction", "k"), [(0.65, 20), (0.7, 21), (0.05, 2), (1.0, 30), (0.0, 0)])
def test_the_fraction_is_of_the_inputs_and_rounded_up(fraction: float, k: int) -> None:
    assert fold("wudi", full((40, 30)), fraction=fraction).figures["k"] == k
    assert fold("wudi", adapters((40, 30)), fraction=fraction).figures["k"] == min(k, 9)


def test_updates_that_cancel_give_nothing() -> None:
    (update,) = adapters((24, 30), [3])
    assert merged("wudi", [update, update.scaled(-1)]).norm() < 1e-12
    assert isinstance(fold("wudi", [update], weight=0.0).update, Zero)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("form", [lambda u: u, lambda u: Dense(u.dense())])
def test_an_update_without_numbers_is_not_left_out(value: float, form: Any) -> None:
    updates = adapters((24, 30))
    assert isinstance(updates[0], LowRank)
    updates[0].left[0, 0] = value
    with pytest.raises(torch.linalg.LinAlgError):
        fold("wudi", [form(u) for u in updates])


def test_it_is_made_of_the_right_side_alone() -> None:
    """The transposed merge is another method's: V are directions of inputs."""
    updates = full((20, 20))
    found = merged("wudi", [Dense(matrix(u).T) for u in updates])
    assert (found.T - merged("wudi", updates)).norm() > 1e-2 * found.norm()


# --- forms ------------------------------------------------------------------------------------------------


def test_adapters_are_never_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """4000 × 5000 numbers are not asked for, nor a Gram matrix of that size."""

    def refuse(self: LowRank, *_: Any) -> torch.Tensor:
        raise AssertionError("a low-rank update was made dense")

    for name in ("rows", "row_gram", "column_gram", "dense"):
        monkeypatch.setattr(LowRank, name, refuse)
    update = fold("wudi", adapters((4000, 5000))).update
    assert isinstance(update, LowRank)
    assert update.rank == 9


def test_a_dense_update_beside_adapters_that_do_not_count() -> None:
    """Where an update is dense all are taken as they are, whatever its weight."""
    updates = [*adapters((24, 30), dtype=torch.float32)[:2], Dense(normal(9, 24, 30, dtype=torch.float32))]
    o = {"weight": [1.0, 0.5, 0.0]}
    assert_close(merged("wudi", updates, **o), merged("wudi", densely(updates), **o), 1e-5)


def test_the_numbers_beside_the_matrices_are_in_range() -> None:
    method = METHODS["wudi"]
    assert {o.name: o.default for o in method.options if o.name != "weight"} == {
        "scale": 1.0,
        "variant": "swudi",
        "time": 1300.0,
        "fraction": 0.65,
    }
    for name, value in (("time", -1), ("fraction", 1.1), ("variant", "wudi")):
        option = method.option(name)
        assert option is not None
        with pytest.raises(ValueError, match=name):
            option.check(value)
    method.check(TensorSpec("w", (3, 4), 2), {"scale": 1.0, "weight": [1.0, 1.0]})


# --- properties -------------------------------------------------------------------------------------------


@st.composite
def banks(draw: st.DrawFn) -> list[Update]:
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    ranks = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    return adapters(shape, ranks, seed=draw(st.integers(0, 1000)))


VALUES = st.fixed_dictionaries(
    {
        "time": st.floats(0, 20),
        "fraction": st.floats(0, 1),
        "scale": st.floats(-2, 2),
        "variant": st.sampled_from(["swudi", "swudi", "aswudi"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(banks(), VALUES)
def test_what_holds_for_all_updates(updates: list[Update], o: dict[str, Any]) -> None:
    shape = updates[0].shape
    found = merged("wudi", updates, **o)
    start = o["scale"] * total(updates)
    share = 1e-5
    assert_close(merged("wudi", streamed(updates), **o), found, share)
    assert_close(merged("wudi", updates[::-1], **o), found, share)
    assert_close(merged("wudi", [u.scaled(8.0) for u in updates], **o), 8 * found, share)
    left, right = rotation(1, shape[0]), rotation(2, shape[1])
    assert_close(merged("wudi", rotated(updates, left, right), **o), left @ found @ right.T, share)
    if o["variant"] == "swudi":
        still = merged("wudi", updates, **(o | {"time": 0.0}))
        assert_close(still, start, share)
