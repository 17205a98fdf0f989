"""What every method that merges whole matrices must do, whatever the form of the updates."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from _support import drive, family, pieces
from _updates import (
    FILLING,
    RANKS,
    SHAPES,
    adapters,
    assert_close,
    densely,
    fold,
    full,
    matrix,
    merged,
    normal,
    options,
    rotated,
    rotation,
    streamed,
)
from submerge.algebra import Dense, LowRank, Streamed, Zero
from submerge.engine import merge_state_dicts
from submerge.methods import METHODS, TensorSpec

CASES: list[tuple[str, dict[str, Any]]] = [
    ("tsv_m", {}),
    ("tsv_m", {"rank": 2}),
    ("tsv_m", {"rank": 100, "weight": [1.0, 0.5, -2.0], "scale": 1.5}),
    ("iso_c", {}),
    ("iso_c", {"weight": [0.5, -1.0, 2.0], "scale": 1.3}),
    ("iso_cts", {}),
    ("iso_cts", {"fraction": 0.3, "weight": [1.0, -0.5, 2.0]}),
    ("iso_cts", {"fraction": 0.0}),
    ("knots_ties", {}),
    ("knots_ties", {"density": [0.1, 0.5, 1.0], "weight": [1.0, 0.5, 2.0], "normalize": False}),
    ("wudi", {}),
    ("wudi", {"time": 2.0, "fraction": 0.3, "weight": [1.0, -0.5, 2.0], "scale": 1.5}),
    ("wudi", {"variant": "aswudi", "weight": [0.5, 1.0, 2.0]}),
    ("ssam", {}),
    ("ssam", {"rank": "2", "scale": 1.5, "weight": [1.0, -0.5, 2.0], "residual": 0.25}),
    ("ssam", {"rank": "energy:0.8", "normalize": "fro", "refine_iters": 3}),
    ("ssam", {"rank": "frac:0.5", "core_merge": "ties"}),
    ("ssam", {"rank": "full", "core_merge": "median"}),
    ("ssam", {"rank": "3", "core_merge": "mean", "core": "diag"}),
    ("ssam", {"rank": "3", "sides": "left", "core_merge": "ties"}),
    ("ssam", {"rank": "3", "sides": "right", "single": "keep"}),
]
each = pytest.mark.parametrize(
    ("method", "o"), CASES, ids=[" ".join([m, *(f"{k}={v}" for k, v in o.items())]) for m, o in CASES]
)
FORMS: list[Callable[..., Any]] = [densely, streamed]


def by_order(o: dict[str, Any], order: list[int]) -> dict[str, Any]:
    return {k: [v[i] for i in order] if isinstance(v, list) else v for k, v in o.items()}


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@each
def test_the_form_of_the_updates_makes_no_difference(
    method: str, o: dict[str, Any], shape: tuple[int, int]
) -> None:
    updates = adapters(shape)
    if o.get("rank") in ("frac:0.5",):  # the ranks of dense updates are those of their shape
        o = o | {"rank": "4"}
    if o.get("rank", "max" if method == "ssam" else None) == "max":
        o = o | {"rank": "4"}
    wanted = merged(method, updates, **o)
    assert wanted.isfinite().all()
    for form in FORMS:
        assert_close(merged(method, form(updates), **o), wanted, 1e-7)
    mixed = [updates[0], *densely(updates[1:])]
    assert_close(merged(method, mixed, **o), wanted, 1e-7)


@each
@pytest.mark.parametrize("bank", [adapters, full])
def test_order_of_models_does_not_matter(method: str, o: dict[str, Any], bank: Callable[..., Any]) -> None:
    updates, order = bank((24, 30)), [2, 0, 1]
    wanted = merged(method, updates, **o)
    found = merged(method, [updates[i] for i in order], **by_order(o, order))
    assert_close(found, wanted, 1e-8)


@each
@pytest.mark.parametrize("bank", [adapters, full])
def test_scaled_updates_give_the_scaled_merge(
    method: str, o: dict[str, Any], bank: Callable[..., Any]
) -> None:
    updates = bank((24, 30))
    found = merged(method, [u.scaled(0.01) for u in updates], **o)
    assert_close(100 * found, merged(method, updates, **o), 1e-9)


@each
@pytest.mark.parametrize("bank", [adapters, full])
def test_rotated_updates_give_the_rotated_merge(
    method: str, o: dict[str, Any], bank: Callable[..., Any]
) -> None:
    """TIES looks at entries: inputs that are not reduced to singular coordinates must not be rotated."""
    m, n = 24, 30
    left, right = rotation(1, m), rotation(2, n)
    if method == "knots_ties" or (o.get("core_merge") == "ties" and o.get("sides") == "left"):
        right = torch.eye(n, dtype=torch.float64)
    updates = bank((m, n))
    found = merged(method, rotated(updates, left, right), **o)
    assert_close(found, left @ merged(method, updates, **o) @ right.T, 1e-8)


@each
def test_the_gauge_of_factors_makes_no_difference(method: str, o: dict[str, Any]) -> None:
    updates = adapters((24, 30))
    gauged = []
    for t, u in enumerate(updates):
        assert isinstance(u, LowRank)
        g = normal(50 + t, u.rank, u.rank) + 3 * torch.eye(u.rank, dtype=torch.float64)
        gauged.append(LowRank(u.left @ torch.linalg.inv(g), g @ u.right))
    assert_close(merged(method, gauged, **o), merged(method, updates, **o), 1e-8)


@each
def test_no_updates_give_no_update(method: str, o: dict[str, Any]) -> None:
    zeros = [Zero((24, 30))] * 3
    assert isinstance(fold(method, zeros, **o).update, Zero)
    for form in FORMS:
        assert merged(method, form(zeros), **o).count_nonzero() == 0
    unborn = [LowRank(torch.zeros(24, 2, dtype=torch.float64), normal(t, 2, 30)) for t in range(3)]
    assert merged(method, unborn, **o).count_nonzero() == 0


@each
def test_a_zero_update_is_one_whatever_its_form(method: str, o: dict[str, Any]) -> None:
    updates = adapters((24, 30), [3, 0, 2])
    unborn = LowRank(torch.zeros(24, 4, dtype=torch.float64), normal(9, 4, 30))
    o = o | {"rank": "3"} if method == "ssam" and o.get("rank") != "full" else o
    wanted = merged(method, updates, **o)
    assert_close(merged(method, [updates[0], unborn, updates[2]], **o), wanted, 1e-8)
    assert_close(merged(method, densely(updates), **o), wanted, 1e-7)


@each
def test_a_weight_of_zero_takes_a_model_out_of_the_sum(method: str, o: dict[str, Any]) -> None:
    """SSAM's bases and KnOTS' coordinates are of all models, whatever their weights."""
    if method in ("ssam", "knots_ties"):
        return
    updates = adapters((24, 30))
    without = [updates[0], Zero((24, 30)), updates[2]]
    weights = o.get("weight", [1.0] * 3)
    o = o | {"weight": [weights[0], 0.0, weights[2]]}
    assert_close(merged(method, updates, **o), merged(method, without, **o), 1e-12)


@each
def test_one_model_is_merged(method: str, o: dict[str, Any]) -> None:
    o = by_order(o, [0])
    for bank in (adapters((24, 30), [3]), full((12, 9), 1)):
        wanted = merged(method, bank, **o)
        assert wanted.isfinite().all()
        assert wanted.norm() > 0


@each
@pytest.mark.parametrize("bank", [adapters, full])
def test_float32_is_as_near_as_it_can_be(method: str, o: dict[str, Any], bank: Callable[..., Any]) -> None:
    """Up to rounding the same as in float64; trimming and medians may flip where magnitudes almost tie."""
    shape = (48, 36)
    wanted = merged(method, bank(shape), **o)
    found = fold(method, bank(shape, dtype=torch.float32), **o).update
    assert found.dense().dtype == torch.float32
    assert_close(matrix(found), wanted, 1e-4 if method == "knots_ties" else 1e-5)


@each
def test_updates_of_bfloat16_weights(method: str, o: dict[str, Any]) -> None:
    base = normal(0, 32, 24)
    tuned = [(base + 1e-2 * normal(t + 1, 32, 24)).bfloat16() for t in range(3)]
    updates = [Dense(t.float() - base.bfloat16().float()) for t in tuned]
    found = merged(method, updates, **o)
    wanted = merged(method, [Dense(u.matrix.double()) for u in updates], **o)
    assert found.isfinite().all()
    assert_close(100 * found, 100 * wanted, 1e-4)


@each
def test_the_same_bits_come_back(method: str, o: dict[str, Any]) -> None:
    for bank in (adapters((24, 30)), full((24, 30))):
        assert torch.equal(merged(method, bank, **o), merged(method, bank, **o))


@each
def test_inputs_are_left_as_they_were(method: str, o: dict[str, Any]) -> None:
    updates = full((24, 30))
    before = [matrix(u).clone() for u in updates]
    merged(method, updates, **o)
    assert all(torch.equal(matrix(u), b) for u, b in zip(updates, before, strict=True))


@each
def test_low_rank_updates_stay_low_rank(method: str, o: dict[str, Any]) -> None:
    update = fold(method, adapters((24, 30)), **o).update
    assert isinstance(update, LowRank)
    assert update.rank <= sum(RANKS) * (2 if o.get("residual") else 1)


@each
@pytest.mark.parametrize("shape", [(60, 50), (50, 60)])
def test_streamed_updates_are_read_by_rows(
    method: str, o: dict[str, Any], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that does not fit the memory is never asked for whole."""
    monkeypatch.setattr("submerge.algebra._update.BLOCK", 400)
    most = 0

    def one(whole: torch.Tensor) -> Streamed:
        def read(start: int, stop: int) -> torch.Tensor:
            nonlocal most
            most = max(most, stop - start)
            return whole[start:stop]

        return Streamed(shape, read, torch.float32)

    bank = full(shape, dtype=torch.float32)
    found = fold(method, [one(u.dense()) for u in bank], **o).update
    assert 0 < most <= -(-shape[0] // 4)
    assert_close(matrix(found), merged(method, bank, **o), 1e-4)


@pytest.mark.parametrize("method", sorted({m for m, _ in CASES}))
def test_other_tensors_are_averaged(method: str) -> None:
    x = normal(0, 3, 37, dtype=torch.float32)
    o = options(method, 3, weight=[1.0, 0.5, 2.0], scale=1.5)
    rule = drive(METHODS[method].plan(TensorSpec("norm", (37,), 3), o), x, length=10)
    found = torch.cat([torch.from_numpy(rule(chunk)) for chunk in pieces(x, [(0, 20), (20, 37)])])
    share = 1.5 if method == "ssam" else 0.5
    assert_close(found, share * (x[0] + 0.5 * x[1] + 2 * x[2]), 1e-6)


@each
def test_whole_merges_treat_matrices_and_other_tensors_as_they_should(method: str, o: dict[str, Any]) -> None:
    shapes = {"layers.0.mlp.weight": (24, 30), "layers.0.norm.weight": (24,)}
    base, models = family(3, shapes)
    found = merge_state_dicts(models, base=base, method=method, **o)
    updates = [Dense(m["layers.0.mlp.weight"] - base["layers.0.mlp.weight"]) for m in models]
    wanted = base["layers.0.mlp.weight"] + merged(method, updates, **o)
    assert_close(found["layers.0.mlp.weight"], wanted, 1e-6)
    weights = o.get("weight", [1.0] * 3)
    scale = options(method, 3, **o)["scale"]
    scale = 1 / 3 if scale == "auto" else scale if method == "ssam" else scale / 3
    norm = base["layers.0.norm.weight"]
    total = sum(w * (m["layers.0.norm.weight"] - norm) for w, m in zip(weights, models, strict=True))
    assert_close(found["layers.0.norm.weight"], norm + scale * total, 1e-6)


def test_figures_are_plain_data() -> None:
    for method, o in CASES:
        found = fold(method, adapters((24, 30)), **o)
        assert json.dumps(dict(found.figures))
