"""SSAM: the identities of its definition (T1 to T13 and T16), its options, and its formula by plain eigh."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

import submerge
from _matrices import truncated
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
    options,
    rotated,
    rotation,
    spec,
    streamed,
)
from submerge.algebra import Dense, FusedLayout, LowRank, RankRule, Update, Zero, shared_subspace
from submerge.errors import RequestError
from submerge.methods import METHODS, TensorSpec

BANKS = [adapters, full]
STACKED = "9"
"""As many directions as the stack of the adapters has."""


def bases(
    updates: Sequence[Update], k: int, norms: Sequence[float] | None = None
) -> tuple[torch.Tensor, ...]:
    """Return the k leading eigenvectors of Σ Δ Δᵀ and of Σ Δᵀ Δ, and their eigenvalues, descending."""
    scaled = [matrix(u) / n for u, n in zip(updates, norms or [1.0] * len(updates), strict=True)]
    a, u = torch.linalg.eigh(sum(x @ x.T for x in scaled))
    b, v = torch.linalg.eigh(sum(x.T @ x for x in scaled))
    return u.flip(1)[:, :k], v.flip(1)[:, :k], a.flip(0), b.flip(0)


def projected(updates: Sequence[Update], k: int) -> list[torch.Tensor]:
    u, v, _, _ = bases(updates, k)
    return [u @ u.T @ matrix(x) @ v @ v.T for x in updates]


def two_sided_error(updates: Sequence[Update], k: int, refine: int) -> float:
    found = shared_subspace(updates, RankRule("int", k), refine=refine)
    u, v = found.u, found.v
    return sum(float((matrix(x) - u @ u.T @ matrix(x) @ v @ v.T).square().sum()) for x in updates)


@pytest.mark.parametrize("shape", SHAPES + FILLING)
@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("bank", BANKS)
def test_it_is_its_formula(shape: tuple[int, int], k: int, bank: Any) -> None:
    updates, o = bank(shape), {"rank": str(k), "scale": 1.5, "weight": [1.0, -0.5, 2.0]}
    assert_close(merged("ssam", updates, **o), formula("ssam", updates, **o), 1e-8)


@pytest.mark.parametrize("rank", ["max", "3", "5", "full"])
def test_t1_one_model_with_its_rank_is_that_model(rank: str) -> None:
    updates = adapters((24, 30), [3])
    assert_close(merged("ssam", updates, rank=rank, scale=1.5), 1.5 * matrix(updates[0]))


@pytest.mark.parametrize("bank", BANKS)
def test_t2_one_model_is_cut_to_its_best_rank_k(bank: Any) -> None:
    update = bank((24, 30))[0]
    u, s, v = truncated(matrix(update), 2)
    assert_close(merged("ssam", [update], rank="2"), u @ torch.diag(s) @ v.T)


@pytest.mark.parametrize("rank", [STACKED, "50", "full", "frac:1", "energy:1"])
def test_t3_with_all_directions_it_is_task_arithmetic(rank: str) -> None:
    updates = adapters((24, 30))
    total = sum(matrix(u) for u in updates)
    assert_close(merged("ssam", updates, rank=rank, scale=0.7), 0.7 * total)
    assert_close(merged("ssam", updates, rank=rank), total / 3)
    updates = full((24, 30))
    assert_close(merged("ssam", updates, rank="full", scale=1.0), sum(matrix(u) for u in updates))


def test_t4_copies_add_up() -> None:
    update = adapters((24, 30), [4])[0]
    u, s, v = truncated(matrix(update), 2)
    assert_close(merged("ssam", [update] * 3, rank="2", scale=0.5), 1.5 * u @ torch.diag(s) @ v.T)


@pytest.mark.parametrize("bank", BANKS)
def test_t5_projection_and_sum_change_places(bank: Any) -> None:
    updates = bank((24, 30))
    u, v, _, _ = bases(updates, 4)
    total = sum(matrix(x) for x in updates)
    assert_close(merged("ssam", updates, rank="4", scale=1.0), u @ u.T @ total @ v @ v.T)


@pytest.mark.parametrize("bank", BANKS)
def test_t6_order_makes_no_difference(bank: Any) -> None:
    updates = bank((24, 30))
    assert_close(merged("ssam", updates[::-1], rank="4"), merged("ssam", updates, rank="4"), 1e-12)


@pytest.mark.parametrize("bank", BANKS)
def test_t7_rotations_and_scales_pass_through(bank: Any) -> None:
    updates, left, right = bank((24, 30)), rotation(1, 24), rotation(2, 30)
    wanted = merged("ssam", updates, rank="4")
    assert_close(merged("ssam", rotated(updates, left, right), rank="4"), left @ wanted @ right.T)
    assert_close(merged("ssam", [u.scaled(-3) for u in updates], rank="4"), -3 * wanted)


def test_t8_it_is_idempotent() -> None:
    updates = adapters((24, 30))
    u, v, _, _ = bases(updates, 4)
    inside = [LowRank(u, u.T @ matrix(x) @ v @ v.T) for x in updates]
    assert_close(merged("ssam", inside, rank="4"), merged("ssam", updates, rank="4"))


@pytest.mark.parametrize("bank", BANKS)
def test_t9_and_t10_errors_are_tails_of_the_spectra(bank: Any) -> None:
    updates = bank((24, 30))
    energy = sum(float(matrix(x).square().sum()) for x in updates)
    _, _, a, b = bases(updates, 4)
    assert float(a.sum()) == pytest.approx(energy)
    assert float(b.sum()) == pytest.approx(energy)
    tails = [float(x[4:].sum()) for x in (a, b)]
    figures = fold("ssam", updates, rank="4").figures
    assert (1 - figures["kept_left"]) * energy == pytest.approx(tails[0])
    assert (1 - figures["kept_right"]) * energy == pytest.approx(tails[1])
    lost = sum(
        float((matrix(x) - p).square().sum()) for x, p in zip(updates, projected(updates, 4), strict=True)
    )
    assert (1 - figures["kept"]) * energy == pytest.approx(lost)
    assert max(tails) - 1e-9 <= lost <= sum(tails) + 1e-9


@pytest.mark.parametrize("bank", BANKS)
def test_t11_more_directions_keep_more(bank: Any) -> None:
    updates = bank((24, 30))
    last = (0.0, 0.0, 0.0)
    for k in (1, 4, 7, 15, 24, 30):
        found = fold("ssam", updates, rank=str(k), scale=0.5)
        now = tuple(found.figures[name] for name in ("kept_left", "kept_right", "kept"))
        assert all(x >= y - 1e-12 for x, y in zip(now, last, strict=True))
        assert found.update.rank <= k
        assert matrix(found.update).norm() <= 0.5 * sum(matrix(u).norm() for u in updates) + 1e-12
        last = now
    assert last == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("shape", SHAPES + FILLING)
def test_t12_the_fast_path_is_the_dense_path(shape: tuple[int, int]) -> None:
    updates = adapters(shape)
    fast, dense = (fold("ssam", u, rank="4") for u in (updates, densely(updates)))
    assert_close(matrix(fast.update), matrix(dense.update), 1e-10)
    for name in ("kept_left", "kept_right", "kept", "kept_each"):
        assert fast.figures[name] == pytest.approx(dense.figures[name])
    assert fast.figures["tied"] == dense.figures["tied"]


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_t13_refinement_never_raises_the_error(bank: Any, k: int) -> None:
    for seed in range(5):
        updates = bank((24, 30), seed=100 * seed)
        errors = [two_sided_error(updates, k, refine) for refine in (0, 1, 2, 5, 10)]
        assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(errors))
        kept = [fold("ssam", updates, rank=str(k), refine_iters=r).figures["kept"] for r in (0, 5)]
        assert kept[1] >= kept[0] - 1e-12


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("rank", ["1", "4", "full"])
@pytest.mark.parametrize("core", ["full", "diag"])
def test_t16_with_all_of_the_residual_it_is_task_arithmetic(bank: Any, rank: str, core: str) -> None:
    updates, weights = bank((24, 30)), [1.0, -0.5, 2.0]
    found = merged("ssam", updates, rank=rank, residual=1.0, weight=weights, scale=0.7, core=core)
    assert_close(found, 0.7 * sum(w * matrix(u) for w, u in zip(weights, updates, strict=True)))


def test_some_of_the_residual_lies_between() -> None:
    updates = adapters((24, 30))
    ends = [merged("ssam", updates, rank="3", residual=r) for r in (0.0, 1.0)]
    assert_close(merged("ssam", updates, rank="3", residual=0.25), 0.75 * ends[0] + 0.25 * ends[1])


# Options


def test_the_default_scale_is_the_mean() -> None:
    updates = adapters((24, 30))
    for core_merge in ("sum", "ties"):
        assert_close(
            merged("ssam", updates, core_merge=core_merge),
            merged("ssam", updates, core_merge=core_merge, scale=1 / 3),
        )
    for core_merge in ("mean", "median"):
        assert_close(
            merged("ssam", updates, core_merge=core_merge),
            merged("ssam", updates, core_merge=core_merge, scale=1.0),
        )
    assert_close(merged("ssam", updates, core_merge="mean"), merged("ssam", updates))


@pytest.mark.parametrize(
    ("rank", "k"),
    [("max", 4), ("2", 2), ("100", 9), ("full", 9), ("frac:0.5", 4), ("frac:0.01", 1), ("frac:1", 9)],
)
def test_rank_rules(rank: str, k: int) -> None:
    assert fold("ssam", adapters((24, 30)), rank=rank).figures["k"] == k


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("share", [0.3, 0.8, 0.95])
def test_energy_takes_the_fewest_directions_that_keep_it(bank: Any, share: float) -> None:
    updates = bank((24, 30))
    figures = fold("ssam", updates, rank=f"energy:{share}").figures
    _, _, a, b = bases(updates, 0)
    wanted = max(int((x.cumsum(0) < share * x.sum()).sum()) + 1 for x in (a, b))
    assert figures["k"] == wanted
    assert min(figures["kept_left"], figures["kept_right"]) >= share


@pytest.mark.parametrize("bank", BANKS)
def test_fro_finds_the_subspace_of_updates_of_one_length(bank: Any) -> None:
    updates = bank((24, 30))
    uneven = [updates[0].scaled(1e3), *updates[1:]]
    u, v, _, _ = bases(uneven, 4, [x.norm for x in uneven])
    total = sum(matrix(x) for x in uneven)
    assert_close(merged("ssam", uneven, rank="4", normalize="fro", scale=1.0), u @ u.T @ total @ v @ v.T)
    kept = fold("ssam", uneven, rank="4").figures["kept_each"]
    evened = fold("ssam", uneven, rank="4", normalize="fro").figures["kept_each"]
    assert evened[1] + evened[2] > kept[1] + kept[2], "the large one owns the subspace no more"


@pytest.mark.parametrize("bank", BANKS)
def test_one_side_may_be_left_as_it_is(bank: Any) -> None:
    updates = bank((24, 30))
    u, v, _, _ = bases(updates, 4)
    total = sum(matrix(x) for x in updates)
    assert_close(merged("ssam", updates, rank="4", sides="left", scale=1.0), u @ u.T @ total)
    assert_close(merged("ssam", updates, rank="4", sides="right", scale=1.0), total @ v @ v.T)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("sides", ["both", "left", "right"])
def test_cores_are_merged_entry_by_entry(bank: Any, sides: str) -> None:
    updates, weights = bank((24, 30)), [1.0, 0.5, 2.0]
    u, v, _, _ = bases(updates, 4)
    u = torch.eye(24, dtype=torch.float64) if sides == "right" else u
    v = torch.eye(30, dtype=torch.float64) if sides == "left" else v
    cores = torch.stack([w * u.T @ matrix(x) @ v for w, x in zip(weights, updates, strict=True)])
    agrees = cores.sign() == torch.where(cores.sum(0) >= 0, 1, -1)
    wanted = {"ties": (cores * agrees).sum(0), "median": cores.median(0).values, "mean": cores.mean(0)}
    for how, core in wanted.items():
        found = merged("ssam", updates, rank="4", weight=weights, core_merge=how, sides=sides, scale=0.7)
        assert_close(found, 0.7 * u @ core @ v.T)


def test_the_median_of_an_even_number_lies_in_the_middle() -> None:
    updates = adapters((24, 30), [3, 4])
    assert_close(merged("ssam", updates, core_merge="median"), merged("ssam", updates, core_merge="mean"))


def test_diag_keeps_the_diagonal() -> None:
    updates = adapters((24, 30))
    u, v, _, _ = bases(updates, 4)
    core = sum(torch.diag(torch.diag(u.T @ matrix(x) @ v)) for x in updates)
    assert_close(merged("ssam", updates, rank="4", core="diag", scale=1.0), u @ core @ v.T)


def test_what_one_model_alone_touches_may_be_kept() -> None:
    updates = adapters((24, 30), [0, 4, 0])
    found = fold("ssam", updates, single="keep", rank="2", weight=0.5)
    assert_close(matrix(found.update), 0.5 * matrix(updates[1]))
    u, s, v = truncated(matrix(updates[1]), 2)
    assert_close(merged("ssam", updates, rank="2"), u @ torch.diag(s) @ v.T / 3)
    both = adapters((24, 30), [2, 4, 0])
    assert_close(merged("ssam", both, single="keep"), merged("ssam", both))
    assert isinstance(fold("ssam", [Zero((24, 30))] * 3, single="keep").update, Zero)


def test_a_cut_between_equal_values_is_told() -> None:
    u, v = rotation(1, 24), rotation(2, 30)
    flat = [LowRank(u[:, :4], v[:, :4].T), LowRank(u[:, 4:5] * 3, v[:, 4:5].T)]
    assert fold("ssam", flat, rank="3").figures["tied"]
    assert not fold("ssam", flat, rank="1").figures["tied"]
    assert not fold("ssam", flat, rank="5").figures["tied"]


def test_what_each_model_keeps_is_told() -> None:
    updates = adapters((24, 30), [3, 0, 2])
    figures = fold("ssam", updates, rank="2").figures
    parts = projected(updates, 2)
    wanted = [
        float(p.square().sum() / matrix(x).square().sum()) if x.norm else 1.0
        for p, x in zip(parts, updates, strict=True)
    ]
    assert figures["kept_each"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": "0"}, "rank must be a positive whole number"),
        ({"rank": "most"}, "found 'most'"),
        ({"rank": "energy:2"}, r"share in \(0, 1\]"),
        ({"rank": "energy:nan"}, r"share in \(0, 1\]"),
        ({"rank": "2.5"}, "positive whole number"),
        ({"core": "diag", "sides": "left"}, "core: diag needs a square core"),
    ],
)
def test_impossible_options_are_refused_before_any_work(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        METHODS["ssam"].check(TensorSpec("model.w", (4, 3), 2), options("ssam", 2, **given))
    assert "model.w" in str(caught.value)


@pytest.mark.parametrize("shape", [(700, 90), (90, 700)])
def test_a_large_side_is_found_by_iteration(shape: tuple[int, int]) -> None:
    signal = normal(1, shape[0], 6) @ normal(2, 6, shape[1])
    updates = [type(u)(u.dense() * 0.05 + signal * (t + 1)) for t, u in enumerate(full(shape))]
    o = {"rank": "6", "scale": 1.0}
    assert_close(merged("ssam", updates, **o), formula("ssam", updates, **o), 1e-6)


# Fused matrices

LAYOUTS = [
    FusedLayout(("q", "k", "v"), (12, 6, 6)),
    FusedLayout(("q", "k", "v"), (4, 2, 2), groups=3),
    FusedLayout(("q", "k", "v"), (10, 10, 10), axis=1),
]


def fused(updates: Sequence[Update], layout: FusedLayout, **given: Any) -> Any:
    rule = METHODS["ssam"].matrix
    assert rule is not None
    o = options("ssam", len(updates), **given)
    return rule(updates, replace(spec(updates), fused=layout), o)


def densely_streamed(shape: tuple[int, int]) -> list[Update]:
    return streamed(full(shape))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["in a row", "by group", "columns"])
@pytest.mark.parametrize("bank", [*BANKS, densely_streamed])
@pytest.mark.parametrize(
    "given",
    [
        {"rank": "3"},
        {"rank": "2", "weight": [1.0, -0.5, 2.0], "scale": 0.7},
        {"rank": "energy:0.8", "residual": 0.3, "core_merge": "ties"},
        {"rank": "2", "sides": "left", "normalize": "fro"},
    ],
)
def test_each_map_of_a_fused_matrix_is_merged_as_it_is_alone(
    layout: FusedLayout, bank: Any, given: dict[str, Any]
) -> None:
    updates = bank((24, 30))
    found = fused(updates, layout, **given)
    parts = zip(*(layout.split(Dense(matrix(u))) for u in updates), strict=True)
    low_rank = zip(*map(layout.split, updates), strict=True)
    for name, part, own, forms in zip(
        layout.maps, layout.split(Dense(matrix(found.update))), parts, low_rank, strict=True
    ):
        alone = fold("ssam", forms, **given)
        assert_close(matrix(part), matrix(alone.update), 1e-12)
        for figure, value in alone.figures.items():
            assert found.figures["maps"][name][figure] == pytest.approx(value)
        if bank is full:
            assert_close(matrix(part), merged("ssam", own, **given), 1e-12)
    whole = merged("ssam", updates, **given)
    assert float((matrix(found.update) - whole).norm()) > 1e-3 * float(whole.norm())


def test_factors_of_a_fused_matrix_stay_factors() -> None:
    found = fused(adapters((24, 30)), LAYOUTS[1]).update
    assert isinstance(found, LowRank)
    assert found.left.shape == (24, 12), "the rank of one map is that of the largest update, 4"
    zero = fused([Zero((24, 30))] * 3, LAYOUTS[1])
    assert isinstance(zero.update, Zero)
    assert set(zero.figures["maps"]) == {"q", "k", "v"}


def test_a_map_that_one_model_alone_touches_may_be_kept() -> None:
    first, second = adapters((24, 30), [3, 3])
    assert isinstance(first, LowRank)
    layout = LAYOUTS[0]
    left = first.left.clone()
    left[12:18] = 0  # the first leaves the keys as they are
    updates = [LowRank(left, first.right), second]
    found = fused(updates, layout, rank="1", single="keep")
    q, k, v = layout.split(found.update)
    assert_close(matrix(k), matrix(layout.split(second)[1]))
    assert found.figures["maps"]["k"] == {"k": 0, "passed": True}
    for part, own in ((q, 0), (v, 2)):
        alone = [layout.split(u)[own] for u in updates]
        assert_close(matrix(part), merged("ssam", alone, rank="1", single="keep"))


# What T counts, and ties


@pytest.mark.parametrize("bank", [adapters, lambda shape, ranks: densely(adapters(shape, ranks))])
@pytest.mark.parametrize("core_merge", ["sum", "mean", "median"])
@pytest.mark.parametrize("residual", [0.0, 0.5])
def test_those_that_change_a_matrix_alone_may_be_counted(bank: Any, core_merge: str, residual: float) -> None:
    updates = bank((24, 30), [3, 0, 2])
    o = {"rank": "2", "core_merge": core_merge, "residual": residual}
    found = fold("ssam", updates, denominator="present", weight=[1.0, 5.0, 0.5], **o)
    changing = fold("ssam", [updates[0], updates[2]], weight=[1.0, 0.5], **o)
    assert_close(matrix(found.update), matrix(changing.update))
    assert len(found.figures["kept_each"]) == 3
    everyone = merged("ssam", updates, **o)
    if core_merge == "sum":
        assert_close(1.5 * everyone, merged("ssam", updates, denominator="present", **o))


@pytest.mark.parametrize("core_merge", ["sum", "mean"])
def test_of_vectors_those_that_change_them_are_counted(core_merge: str) -> None:
    base = {"norm": torch.ones(8), "other": torch.ones(8)}
    tuned = [base | {"norm": torch.full((8,), 1 + x)} for x in (1.0, 3.0)] + [base]
    for denominator, wanted in (("all", 1 + 4 / 3), ("present", 3.0)):
        found = submerge.merge_state_dicts(
            tuned, base=base, method="ssam", denominator=denominator, core_merge=core_merge
        )
        torch.testing.assert_close(found["norm"], torch.full((8,), wanted))
        assert torch.equal(found["other"], base["other"])
    scaled = submerge.merge_state_dicts(tuned, base=base, method="ssam", denominator="present", scale=1.0)
    torch.testing.assert_close(scaled["norm"], torch.full((8,), 5.0))


def test_a_cut_between_equal_values_is_warned_of() -> None:
    u, v = rotation(1, 24), rotation(2, 30)
    flat = [LowRank(u[:, :4], v[:, :4].T), LowRank(u[:, 4:5] * 3, v[:, 4:5].T)]
    assert "choose another rank" in fold("ssam", flat, rank="3").figures["warning"]
    assert "warning" not in fold("ssam", flat, rank="5").figures
    layout = FusedLayout(("k", "v"), (12, 12))
    first = LowRank(torch.eye(24, 4, dtype=torch.float64), v[:, :4].T)
    found = fused([first, Zero((24, 30))], layout, rank="3")
    assert "choose another rank" in found.figures["warning"]
    assert "warning" not in found.figures["maps"]["k"]
