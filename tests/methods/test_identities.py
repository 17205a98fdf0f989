"""What every method must do in the cases where the answer is known."""

from collections.abc import Callable

import pytest
import torch

from _states import assert_close, assert_equal, plus, zeros
from _support import CASES, DETERMINISTIC, RANDOM, UPDATES, Case, family, state
from submerge.engine import merge_state_dicts
from submerge.errors import WorkError
from submerge.methods import METHODS

SMALL = {"matrix": (24, 17), "norm": (37,), "scalar": (), "conv": (4, 3, 2, 5)}
BY_SIZE = [
    case
    for case in CASES
    if case.method in ("multislerp", "nearswap", "arcee_fusion", "ram", "ramplus_tl")
    or (case.method == "sce" and case.values["variant"] == "mergekit")
]
"""Cases in which an option, or the method itself, says how large weights are."""


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
@pytest.mark.parametrize(
    "name", ["linear", "slerp", "nuslerp-weights", "karcher", "karcher-base", "arcee_fusion"]
)
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
    ("multislerp", {"weight": [0.3, 0.3, 0.4]}),
    ("ram", {}),
    ("ramplus_tl", {}),
]


@pytest.mark.parametrize(("method", "options"), EQUAL)
def test_equal_models_give_that_model(method: str, options: dict) -> None:
    base, (model,) = family(1)
    base = base if METHODS[method].origin == "base" else None
    assert_close(merge_state_dicts([model] * 3, base=base, method=method, **options), model)


@pytest.mark.parametrize("case", [case for case in DETERMINISTIC if case.models > 1], ids=str)
def test_order_of_models_does_not_matter(case: Case) -> None:
    base, models = family(case.models)
    order = [*range(1, case.models), 0]
    permuted = {
        name: [value[i] for i in order] if isinstance(value, list) else value
        for name, value in case.options.items()
    }
    again = case.merge(base, [models[i] for i in order], **permuted)
    assert_close(case.merge(base, models), again, atol=3e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case not in BY_SIZE], ids=str)
def test_scaled_weights_give_the_scaled_merge(case: Case) -> None:
    """All weights times 4, which is exact: but for those above, no method has a natural size of weights."""
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
