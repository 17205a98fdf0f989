"""Second moments are those of the inputs that hooks see, and one for each distinct input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from _models import CONFIGS, quiet_transformers
from _updates import assert_close, normal
from calibrate.helpers_null_space import all_inputs, batch
from submerge.algebra import BlockMoment
from submerge.calibrate import MOMENT_KINDS, Mean, SecondMoment, second_moments, shared_inputs
from submerge.errors import RequestError

pytest.importorskip("transformers")
LAYERS = [f"model.layers.{i}" for i in (0, 1)]
NAMES = [
    f"{layer}.{module}_proj"
    for layer in LAYERS
    for module in (
        "self_attn.q",
        "self_attn.k",
        "self_attn.v",
        "self_attn.o",
        "mlp.gate",
        "mlp.up",
        "mlp.down",
    )
]


def model(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    t = quiet_transformers()
    torch.manual_seed(0)
    name, config = CONFIGS[kind]
    return getattr(t, name)(config(t)).to(dtype).eval().requires_grad_(False)


def widths(lm: Any) -> dict[str, int]:
    return {name: lm.get_submodule(name).weight.shape[1] for name in NAMES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_those_of_the_inputs_that_hooks_see(dtype: torch.dtype) -> None:
    lm, batches = model(dtype=dtype), [batch(0), batch(1, size=2, length=5)]
    moments = second_moments(lm, batches, widths(lm))
    seen = [all_inputs(lm, NAMES, one) for one in batches]
    for name in NAMES:
        rows = torch.cat([one[name] for one in seen]).double()
        assert moments[name].count == len(rows) == sum(int(one["attention_mask"].sum()) for one in batches)
        assert_close(moments[name].times(torch.eye(rows.shape[1])), rows.T @ rows, 1e-12)


def test_modules_with_one_input_share_one_moment() -> None:
    lm = model()
    shared = shared_inputs(lm, batch(0), NAMES)
    for layer in LAYERS:
        assert shared[f"{layer}.self_attn.q_proj"] == [f"{layer}.self_attn.{m}_proj" for m in "qkv"]
        assert shared[f"{layer}.mlp.gate_proj"] == [f"{layer}.mlp.{m}_proj" for m in ("gate", "up")]
    assert len(shared) == 8
    moments = second_moments(lm, [batch(0)], widths(lm))
    assert list(moments) == NAMES
    assert len({id(moment) for moment in moments.values()}) == 8


def test_an_input_that_is_changed_in_place_is_another() -> None:
    class Changes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.a(x) + self.b(x)
            return first + self.c(x.mul_(2))

    assert shared_inputs(Changes(), {"x": torch.ones(1, 4)}, "abc") == {"a": ["a", "b"], "c": ["c"]}


def test_a_module_that_the_data_does_not_reach_has_no_rows() -> None:
    class Branches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) if x.sum() > 0 else self.b(x)

    batches = [{"x": sign * torch.ones(3, 4)} for sign in (1, 1)]
    moments = second_moments(Branches(), batches, {"a": 4, "b": 4})
    assert {name: moment.count for name, moment in moments.items()} == {"a": 6, "b": 0}
    later = second_moments(Branches(), [*batches, {"x": -torch.ones(2, 4)}], {"a": 4, "b": 4})
    assert {name: moment.count for name, moment in later.items()} == {"a": 6, "b": 2}


@pytest.mark.parametrize("kind", MOMENT_KINDS)
def test_any_batches_of_the_rows_give_the_same(kind: str) -> None:
    rows = 100 * normal(0, 97, 24).bfloat16()
    at_once, by_parts = SecondMoment(24, kind, block=10), SecondMoment(24, kind, block=10)
    at_once.update(rows)
    for part in rows.split(5):
        by_parts.update(part)
    eye = torch.eye(24, dtype=torch.float64)
    assert by_parts.moment.kind == kind
    assert by_parts.moment.count == 97
    assert_close(by_parts.moment.times(eye), at_once.moment.times(eye), 1e-13)


def test_a_block_is_the_largest_that_divides_the_width() -> None:
    reducer = SecondMoment(24, "block", block=10)
    reducer.update(normal(0, 5, 24))
    assert isinstance(reducer.moment, BlockMoment)
    assert reducer.moment.sum.shape == (3, 8, 8)


def test_sums_may_be_held_in_float32() -> None:
    rows = normal(0, 50, 8)
    reducer = SecondMoment(8, dtype=torch.float32)
    reducer.update(rows)
    assert reducer.moment.dtype == torch.float32
    assert_close(reducer.moment.times(torch.eye(8)), rows.T @ rows, 1e-6)


def test_a_moment_does_not_change_with_later_rows() -> None:
    reducer = SecondMoment(3)
    reducer.update(torch.eye(3))
    moment = reducer.moment
    reducer.update(torch.eye(3))
    assert_close(moment.times(torch.eye(3)), torch.eye(3))


def test_the_mean_is_that_of_all_rows() -> None:
    rows, one, other = normal(0, 20, 6), Mean(6), Mean(6)
    assert one.mean.isnan().all()
    for part in rows[:13].split(4):
        one.update(part)
    other.update(rows[13:])
    assert_close(one.mean, rows[:13].mean(0), 1e-14)
    assert_close((one.sum + other.sum) / (one.count + other.count), rows.mean(0), 1e-14)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="not low"):
        SecondMoment(4, "low")
    with pytest.raises(RequestError, match="there are no inputs"):
        second_moments(model(), [], {NAMES[0]: 4})
