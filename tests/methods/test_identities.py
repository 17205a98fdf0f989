"""What every method must do in the cases where the answer is known."""

import math
from collections.abc import Callable

import pytest
import torch

from _support import CASES, DETERMINISTIC, RANDOM, SHAPES, UPDATES, Case, State, family, state
from submerge.engine import merge_state_dicts
from submerge.errors import RequestError, WorkError
from submerge.methods import METHODS

SMALL = {"matrix": (24, 17), "norm": (37,), "scalar": (), "conv": (4, 3, 2, 5)}
SPARSE = ["ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"]
VOTING = ["ties", "dare_ties", "della", "breadcrumbs_ties"]
BY_ENERGY = [case for case in UPDATES if case.method == "sce" and case.values["variant"] == "mergekit"]


def assert_close(one: State, other: State, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    assert list(one) == list(other)
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], rtol=rtol, atol=atol, msg=lambda m, k=key: f"{k}: {m}"
        )


def assert_equal(one: State, other: State) -> None:
    assert_close(one, other, rtol=0, atol=0)


def plus(base: State, updates: State, scale: float = 1.0) -> State:
    return {key: base[key] + scale * updates[key] for key in base}


def zeros(like: State) -> State:
    return {key: torch.zeros_like(value) for key, value in like.items()}


# Any method


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inputs_are_left_as_they_were(case: Case) -> None:
    base, models = family(case.models)
    case.merge(base, models)
    again, others = family(case.models)
    for one, other in zip([base, *models], [again, *others], strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", UPDATES, ids=str)
def test_copies_of_the_base_give_the_base(case: Case, dtype: torch.dtype) -> None:
    base = state(0, dtype=dtype)
    assert_equal(case.merge(base, [base] * case.models), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["linear", "slerp", "nuslerp-weights", "karcher", "karcher-base"])
def test_copies_of_16_bit_weights_come_back_exactly(name: str, dtype: torch.dtype) -> None:
    """Methods that average the weights themselves: what float32 rounds off is far below 16 bits."""
    (case,) = [case for case in CASES if case.name == name]
    base = state(0, dtype=dtype)
    assert_equal(case.merge(base, [base] * case.models), base)


EQUAL = [
    ("linear", {"weight": [0.3, 0.3, 0.4]}),
    ("task_arithmetic", {"weight": 1 / 3}),
    ("ties", {"weight": [0.1, 0.6, 0.2]}),
    ("ties", {"weight": 1, "variant": "paper"}),
    ("breadcrumbs", {"weight": 1 / 3}),
    ("breadcrumbs_ties", {"weight": 1 / 3}),
    ("dare_linear", {"weight": 1 / 3}),
    ("della", {"weight": 0.7}),
    ("sce", {}),
    ("sce", {"variant": "paper"}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True, "variant": "paper"}),
    ("karcher", {}),
]


@pytest.mark.parametrize(("method", "options"), EQUAL)
def test_equal_models_give_that_model(method: str, options: dict) -> None:
    base, (model,) = family(1)
    base = base if METHODS[method].origin == "base" else None
    assert_close(merge_state_dicts([model] * 3, base=base, method=method, **options), model)


@pytest.mark.parametrize(
    "options", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}]
)
@pytest.mark.parametrize("has_base", [True, False])
def test_nuslerp_of_equal_models_is_that_model(options: dict, has_base: bool) -> None:
    base, (model,) = family(1)
    merged = merge_state_dicts(
        [model] * 2, base=base if has_base else None, method="nuslerp", weight=[0.7, 0.3], **options
    )
    assert_close(merged, model)


@pytest.mark.parametrize("case", [case for case in DETERMINISTIC if case.models > 1], ids=str)
def test_order_of_models_does_not_matter(case: Case) -> None:
    base, models = family(case.models)
    order = [*range(1, case.models), 0]
    turned = {
        name: [value[i] for i in order] if isinstance(value, list) else value
        for name, value in case.options.items()
    }
    assert_close(case.merge(base, models), case.merge(base, [models[i] for i in order], **turned), atol=3e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case not in BY_ENERGY], ids=str)
def test_scaled_weights_give_the_scaled_merge(case: Case) -> None:
    """All weights times 4, which is exact: no method has a natural size of weights.

    Save SCE's mergekit variant, which weighs by energy only where there is enough of it.
    """
    base, models = family(case.models)
    times = [{key: 4 * value for key, value in one.items()} for one in (base, *models)]
    assert_equal(case.merge(times[0], times[1:]), {k: 4 * v for k, v in case.merge(base, models).items()})


@pytest.mark.parametrize("case", UPDATES, ids=str)
def test_the_base_is_only_an_origin(case: Case) -> None:
    """Updates that float32 holds exactly: merging base + Δ is base + merging Δ."""
    base, tuned = family(case.models)
    base, *tuned = ({k: (v * 1024).round() / 1024 for k, v in one.items()} for one in (base, *tuned))
    updates = [{key: model[key] - base[key] for key in base} for model in tuned]
    assert_close(case.merge(base, tuned), plus(base, case.merge(zeros(base), updates)))


@pytest.mark.parametrize("bad", [(torch.nan, torch.nan), (torch.inf, torch.inf), (torch.inf, -torch.inf)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nonfinite_values_are_reported_or_let_through(
    case: Case, bad: tuple[float, float], tiny_chunks: Callable[..., None]
) -> None:
    tiny_chunks(length=100)
    base, models = family(case.models, SMALL)
    models[0]["matrix"][3, 4], models[-1]["matrix"][20, 4] = bad
    with pytest.raises(WorkError, match="matrix"):
        case.merge(base, models)
    merged = case.merge(base, models, allow_nonfinite=True)
    for key in ("scalar", "conv"):
        assert merged[key].isfinite().all(), "a tensor is not touched by what another one holds"
    if case.exact and not case.random:
        assert merged["matrix"].isfinite().sum() >= merged["matrix"].numel() - 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dtype_of_the_output_is_a_rounding(case: Case) -> None:
    base, models = family(case.models)
    merged = case.merge(base, models)
    assert_equal(case.merge(base, models, dtype="bfloat16"), {k: v.bfloat16() for k, v in merged.items()})


# Averages of weights


def test_soup_is_task_arithmetic_of_one_over_t() -> None:
    base, models = family(4)
    soup = merge_state_dicts(models, method="linear", weight=0.25)
    assert_close(soup, merge_state_dicts(models, base=base, method="task_arithmetic", weight=0.25))
    scaled = merge_state_dicts(models, base=base, method="task_arithmetic", weight=1, **{"lambda": 0.25})
    assert_close(soup, scaled)


def test_a_model_of_weight_one_among_zeros_comes_back_exactly() -> None:
    _, models = family(3)
    assert_equal(merge_state_dicts(models, method="linear", weight=[0, 1, 0]), models[1])


def test_passthrough_copies_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model = state(0, dtype=dtype)
        assert_equal(merge_state_dicts([model], method="passthrough"), model)


def test_passthrough_scales() -> None:
    model = state(0)
    scaled = merge_state_dicts([model], method="passthrough", scale=-1.5)
    assert_equal(scaled, {k: v * -1.5 for k, v in model.items()})


@pytest.mark.parametrize("size", [0.001, 0.1, 3.0], ids=["straight", "narrow", "wide"])
def test_slerp_ends_are_the_inputs(size: float) -> None:
    base, (model,) = family(1, size=size)
    assert_equal(merge_state_dicts([model], base=base, method="slerp", t=0), base)
    assert_equal(merge_state_dicts([model], base=base, method="slerp", t=1), model)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_of_equal_norms_keeps_the_norm(t: float) -> None:
    base, (model,) = family(1, {"w": (50, 30)}, size=1.0)
    model["w"] *= base["w"].norm() / model["w"].norm()
    merged = merge_state_dicts([model], base=base, method="slerp", t=t)["w"]
    assert merged.norm().item() == pytest.approx(base["w"].norm().item(), rel=1e-6)


def test_slerp_begins_at_the_base_wherever_it_is_listed() -> None:
    base, (model,) = family(1)
    assert_close(
        merge_state_dicts([model], base=base, method="slerp", t=0.25),
        merge_state_dicts([base], base=model, method="slerp", t=0.75),
    )


def test_karcher_of_two_equal_norms_is_slerp_at_a_half() -> None:
    base, (model,) = family(1, SMALL, size=1.0)
    model = {key: value * base[key].norm() / value.norm() for key, value in model.items()}
    model["scalar"] = base["scalar"]
    karcher = merge_state_dicts([base, model], method="karcher", max_iter=100, tol=1e-12)
    assert_close(karcher, merge_state_dicts([model], base=base, method="slerp", t=0.5), atol=1e-5)


def test_karcher_counts_the_base_as_a_model() -> None:
    base, models = family(2)
    assert_equal(
        merge_state_dicts(models, base=base, method="karcher"),
        merge_state_dicts([base, *models], method="karcher"),
    )


def test_karcher_of_one_model_is_that_model() -> None:
    model = state(0)
    assert_equal(merge_state_dicts([model], method="karcher"), model)


@pytest.mark.parametrize("method", ["karcher", "nuslerp"])
@pytest.mark.parametrize("seed", range(8))
def test_opposite_models_give_nothing_longer_than_they_are(method: str, seed: int) -> None:
    """The arc between opposites is not defined; rounding must not choose a result for us."""
    model = state(seed, {"w": (50, 30)})["w"]
    options = {"weight": [0.7, 0.3]} if method == "nuslerp" else {}
    merged = merge_state_dicts([{"w": model}, {"w": -model}], method=method, **options)["w"]
    torch.testing.assert_close(merged, model * (0.4 if method == "nuslerp" else 1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_opposite_rows_are_mixed_in_a_straight_line(row_wise: bool, seed: int) -> None:
    model = state(seed, {"w": (50, 30)})["w"]
    options = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise, "weight": [0.7, 0.3]}
    merged = merge_state_dicts([{"w": model}, {"w": -model}], method="nuslerp", **options)["w"]
    torch.testing.assert_close(merged, 0.4 * model, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", [[1, 1], [0, 0], [3, 3], [1, -1]])
def test_nuslerp_is_halfway_where_weights_are_equal_or_cancel(weight: list[float]) -> None:
    _, models = family(2)
    half = merge_state_dicts(models, method="nuslerp", weight=[0.5, 0.5])
    assert_equal(merge_state_dicts(models, method="nuslerp", weight=weight), half)


@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_keeps_the_length_of_every_row(row_wise: bool) -> None:
    a, b = (state(seed, {"w": (6, 40)})["w"] for seed in (0, 1))
    dim = 0 if row_wise else 1
    a, b = (v / v.norm(dim=dim, keepdim=True) for v in (a, b))
    options = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
    merged = merge_state_dicts([{"w": a}, {"w": b}], method="nuslerp", weight=[0.7, 0.3], **options)["w"]
    torch.testing.assert_close(merged.norm(dim=dim), torch.ones(6 if dim else 40))


# Model Stock and SCE


def orthogonal(count: int, norms: list[float]) -> tuple[State, list[State]]:
    """Return a base, and models with orthogonal updates of these norms."""
    base = state(0, {"w": (30, 20)})
    q, _ = torch.linalg.qr(state(1, {"w": (600, count)}, torch.float64)["w"])
    return base, [{"w": (base["w"] + n * q[:, t].view(30, 20)).float()} for t, n in enumerate(norms)]


@pytest.mark.parametrize("variant", ["mergekit", "paper"])
def test_model_stock_of_orthogonal_updates_is_the_base(variant: str) -> None:
    base, models = orthogonal(3, [1.0, 2.0, 3.0])
    assert_close(merge_state_dicts(models, base=base, method="model_stock", variant=variant), base)


def test_model_stock_goes_as_far_as_updates_agree() -> None:
    """Two updates at 60°: c = 1/2, r = 2/3."""
    base, (one, other) = orthogonal(2, [1.0, 1.0])
    a, b = one["w"] - base["w"], other["w"] - base["w"]
    second = {"w": base["w"] + 0.5 * a + math.sqrt(0.75) * b}
    merged = merge_state_dicts([one, second], base=base, method="model_stock")["w"]
    torch.testing.assert_close(merged, base["w"] + (1.5 * a + math.sqrt(0.75) * b) / 3, rtol=0, atol=1e-6)


def test_model_stock_of_opposite_updates_is_the_base() -> None:
    base, (model,) = family(1)
    other = {key: 2 * base[key] - model[key] for key in base}
    assert_close(merge_state_dicts([model, other], base=base, method="model_stock"), base)


def test_model_stock_paper_goes_by_direction_however_small_the_updates() -> None:
    base = zeros(state(0))
    _, models = family(2)
    tiny = [{k: v * 2.0**-20 for k, v in m.items()} for m in models]
    paper = merge_state_dicts(tiny, base=base, method="model_stock", variant="paper")
    full = merge_state_dicts(models, base=base, method="model_stock", variant="paper")
    assert_close(paper, {k: v * 2.0**-20 for k, v in full.items()}, atol=0)
    pulled = merge_state_dicts(tiny, base=base, method="model_stock")
    assert all(pulled[k].norm() < 0.1 * paper[k].norm() for k in ("matrix", "conv", "cube"))


@pytest.mark.parametrize("variant", ["mergekit", "paper"])
def test_sce_of_one_model_is_that_model(variant: str) -> None:
    base, (model,) = family(1)
    assert_close(merge_state_dicts([model], base=base, method="sce", variant=variant), model)


def test_sce_of_one_model_and_partial_selection_is_the_base() -> None:
    """One model does not vary, so nothing is selected."""
    base, (model,) = family(1)
    assert_equal(merge_state_dicts([model], base=base, method="sce", select_topk=0.5), base)


def test_sce_that_selects_nothing_is_the_base() -> None:
    base, models = family(3)
    assert_equal(merge_state_dicts(models, base=base, method="sce", select_topk=0), base)


def test_sce_selects_the_varying_share() -> None:
    base, models = family(3, {"w": (40, 25)})
    for model in models[1:]:
        model["w"][:20] = models[0]["w"][:20]  # half of the entries do not vary
    merged = merge_state_dicts(models, base=base, method="sce", select_topk=0.25)["w"]
    changed = merged != base["w"]
    assert changed.sum() == 125
    assert not changed[:20].any()


def test_sce_paper_weighs_small_updates_by_energy() -> None:
    base = zeros(state(0))
    _, models = family(3)
    small = [{k: v * 2.0**-15 * (t + 1) for k, v in m.items()} for t, m in enumerate(models)]
    large = [{k: v * (t + 1) for k, v in m.items()} for t, m in enumerate(models)]
    scaled = {k: v * 2.0**-15 for k, v in merge_state_dicts(large, base=base, method="sce").items()}
    assert_close(merge_state_dicts(small, base=base, method="sce", variant="paper"), scaled, atol=0)
    equal = merge_state_dicts(small, base=base, method="sce")
    assert (equal["matrix"] - scaled["matrix"]).abs().max() > 1e-6


# Task arithmetic's relatives


@pytest.mark.parametrize("method", SPARSE)
def test_density_one_keeps_all(method: str) -> None:
    """For one model every relative is then task arithmetic; without a vote also for several."""
    base, models = family(3)
    models = models[:1] if method in VOTING else models
    weights = [0.5, 0.25, 1.0][: len(models)]
    plain = merge_state_dicts(models, base=base, method="task_arithmetic", weight=weights)
    merged = merge_state_dicts(models, base=base, method=method, weight=weights, density=1, normalize=False)
    assert_equal(merged, plain)


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("rescale", [True, False])
def test_density_zero_is_the_base(method: str, rescale: bool) -> None:
    base, models = family(2)
    assert_equal(
        merge_state_dicts(models, base=base, method=method, weight=1, density=0, rescale=rescale), base
    )


@pytest.mark.parametrize("method", VOTING)
def test_voters_agree_on_updates_of_one_sign(method: str) -> None:
    base, models = family(3)
    up = [{k: base[k] + (m[k] - base[k]).abs() for k in base} for m in models]
    plain = merge_state_dicts(up, base=base, method="task_arithmetic", weight=[0.5, 0.25, 1.0])
    merged = merge_state_dicts(
        up, base=base, method=method, weight=[0.5, 0.25, 1.0], density=1, normalize=False
    )
    assert_close(merged, plain)


def test_ties_of_one_task_is_that_task() -> None:
    base, (model,) = family(1)
    assert_close(merge_state_dicts([model], base=base, method="ties", weight=1), model)
    assert_close(merge_state_dicts([model], base=base, method="ties", weight=0.3, variant="mergekit"), model)


def test_ties_elects_by_the_sum_and_averages_who_agrees() -> None:
    base = {"w": torch.zeros(4)}
    models = [
        {"w": torch.tensor(v)}
        for v in ([1.0, 4.0, -1.0, 2.0], [3.0, -1.0, -2.0, 0.0], [-2.0, -2.0, 1.0, -2.0])
    ]
    merged = merge_state_dicts(models, base=base, method="ties", weight=1)
    assert merged["w"].tolist() == [2.0, 4.0, -1.5, 2.0], "a tie is positive; a zero does not take part"


def test_ties_paper_elects_before_it_weighs() -> None:
    base = {"w": torch.zeros(1)}
    models = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}]
    weights = [0.1, 1.0, 0.2]
    ours = merge_state_dicts(models, base=base, method="ties", weight=weights)["w"]
    paper = merge_state_dicts(models, base=base, method="ties", weight=weights, variant="paper")["w"]
    assert ours.item() == pytest.approx(-1.0), "0.3 − 1 + 0.2 < 0: the second alone, divided by its weight"
    assert paper.item() == pytest.approx((0.1 * 3 + 0.2 * 1) / 2), "3 − 1 + 1 > 0: two agree"


@pytest.mark.parametrize(("density", "kept"), [(0.5, 50), (0.999, 99), (0.011, 1), (0.0001, 1)])
def test_ties_keeps_its_share_and_at_least_one(density: float, kept: int) -> None:
    base, models = family(1, {"w": (10, 10)})
    merged = merge_state_dicts(models, base=base, method="ties", weight=1, density=density)["w"]
    update, was = (merged - base["w"]).flatten(), (models[0]["w"] - base["w"]).flatten()
    assert torch.equal(update.nonzero().flatten(), was.abs().topk(kept).indices.sort().values)


def test_breadcrumbs_without_outliers_is_task_arithmetic() -> None:
    base, models = family(3)
    plain = merge_state_dicts(models, base=base, method="task_arithmetic", weight=0.5)
    assert_equal(merge_state_dicts(models, base=base, method="breadcrumbs", weight=0.5, gamma=0), plain)


@pytest.mark.parametrize(
    ("density", "gamma", "first"), [(0.5, 0.1, 10), (0.5, 0.0, 0), (0.95, 0.1, 5), (0.3, 0.9, 70)]
)
def test_breadcrumbs_drops_outliers_then_the_smallest(density: float, gamma: float, first: int) -> None:
    """Of 100 entries; where γ + density > 1 fewer outliers are dropped."""
    base, models = family(1, {"w": (10, 10)})
    options = {"density": density, "gamma": gamma}
    merged = merge_state_dicts(models, base=base, method="breadcrumbs", weight=1, **options)["w"]
    update, was = (merged - base["w"]).flatten(), (models[0]["w"] - base["w"]).flatten()
    ordered = was.abs().sort(descending=True).indices
    wanted = ordered[first : first + round(100 * density)].sort().values
    assert torch.equal(update.nonzero().flatten(), wanted)


@pytest.mark.parametrize(
    "method", ["ties", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear"]
)
def test_rescale_restores_the_l1_norm(method: str) -> None:
    base, models = family(1, SHAPES, seed=3)
    options = {"density": 0.5, "normalize": False, "rescale": True}
    merged = merge_state_dicts(models, base=base, method=method, weight=1, **options)
    for key in ("matrix", "norm", "conv", "cube"):
        before, after = (one[key] - base[key] for one in (models[0], merged))
        assert after.abs().sum().item() == pytest.approx(before.abs().sum().item(), rel=1e-5), key
        assert (after == 0).any()


@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_masks_follow_the_seed(case: Case) -> None:
    base, models = family(case.models)
    merged = case.merge(base, models, seed=5)
    assert_equal(merged, case.merge(base, models, seed=5))
    assert not torch.equal(merged["matrix"], case.merge(base, models, seed=6)["matrix"])
    assert_equal(
        {"matrix": merged["matrix"]},
        case.merge({"matrix": base["matrix"]}, [{"matrix": m["matrix"]} for m in models], seed=5),
    )


@pytest.mark.parametrize("weight", [[1.0, -1.0, 0.0], [0.1, 0.2, -0.3], [1e-9, 2e-9, -3e-9]])
def test_weights_that_cancel_are_refused_whatever_their_rounding(weight: list[float]) -> None:
    _, models = family(3, {"w": (4,)})
    with pytest.raises(RequestError, match="sum to zero"):
        merge_state_dicts(models, method="linear", weight=weight)
