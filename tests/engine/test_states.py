"""State dicts in memory: the same merges as of files, and clear words about what is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import submerge
from _models import ROOM, Family, perturbed, read, write
from _support import CASES, Case

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIDES = st.sampled_from([0, 1, 2, 3, 17, 64])


@st.composite
def bases(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    found = {}
    for i in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(SIDES, max_size=3))
        found[f"layers.{i}.weight"] = torch.randn(shape, generator=random).to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):
        found["ids"] = torch.arange(4)
    return found


@given(
    base=bases(),
    case=st.sampled_from(CASES),
    shards=st.integers(1, 2),
    size=st.sampled_from([1, 100, 10**9]),
    threads=st.integers(1, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_files_and_memory_agree_to_the_bit(
    base: dict[str, torch.Tensor],
    case: Case,
    shards: int,
    size: int,
    threads: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("any")
    tuned = [perturbed(base, i) for i in range(case.models)]
    folders = tuple(write(root / str(i), t, shards=shards) for i, t in enumerate(tuned))
    made = Family(write(root / "base", base), folders, "Toy")
    try:
        wanted = case.merge(base, tuned)
    except submerge.RequestError as error:
        with pytest.raises(submerge.RequestError, match=type(error).__name__[:0]):
            submerge.merge(recipe_of(case, made), root / "out", settings=ROOM)
        return
    report = submerge.merge(
        recipe_of(case, made),
        root / "out",
        settings=submerge.Settings(max_memory=ROOM.max_memory, shard_size=size, threads=threads),
    )
    found = read(report.out)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value), name
    assert submerge.verify(report.out, load=False).sound


def recipe_of(case: Case, made: Family) -> dict[str, Any]:
    """Return a case of the methods' tests as a recipe over files."""
    each = {k: v for k, v in case.options.items() if isinstance(v, list)}
    return {
        "merge_method": case.method,
        "models": [
            {"model": str(folder), "parameters": {k: v[i] for k, v in each.items()}}
            for i, folder in enumerate(made.tuned)
        ],
        "parameters": {k: v for k, v in case.options.items() if k not in each},
        **({"base_model": str(made.base)} if case.base else {}),
    }


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (torch.zeros(3).to(torch.float8_e4m3fn), "float8_e4m3fn cannot be merged"),
        (torch.zeros(3, dtype=torch.complex64), "complex64 cannot be merged"),
        (torch.zeros(3, device="meta"), "no dense tensor"),
        (torch.zeros(3).to_sparse(), "no dense tensor"),
        ([1.0, 2.0], "not an object of type list"),
        (None, "not an object of type NoneType"),
    ],
)
def test_what_is_no_tensor_of_weights(value: Any, part: str) -> None:
    good = {"a": torch.ones(3), "b": torch.ones(3)}
    with pytest.raises(submerge.RequestError, match=f"states\\[1\\], tensor b: .*{part}"):
        submerge.merge_state_dicts([good, good | {"b": value}], weight=1.0)


def test_inputs_stay_as_they_are() -> None:
    model = torch.nn.Linear(4, 3)
    state = model.state_dict()
    kept = {k: v.clone() for k, v in state.items()}
    result = submerge.merge_state_dicts([state, {k: v + 1 for k, v in state.items()}], weight=1.0)
    assert all(torch.equal(state[k], kept[k]) for k in kept)
    model.load_state_dict(result)
    result["bias"].add_(1)
    assert torch.equal(state["weight"].detach(), result["weight"] * 0 + model.weight.detach())


def test_parameters_views_and_shared_storage(tmp_path: Path) -> None:
    big = torch.nn.Parameter(torch.arange(24.0).view(4, 6))
    state = {"a": big, "b": big.t(), "c": big[1:3, ::2], "d": big}
    out = submerge.merge_state_dicts({"one": state, "two": state}, weight={"one": 0.25, "two": 0.75})
    for name, value in state.items():
        assert torch.equal(out[name], value.detach())
        assert out[name].is_contiguous()
        assert not out[name].requires_grad


def linear(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def test_modules_are_taken_for_their_state_dicts() -> None:
    base, first, second = linear(0), linear(1), linear(2)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    options: dict[str, Any] = {"method": "task_arithmetic", "weight": [1.0, 0.5], "lambda_": 0.7}
    found = submerge.merge_state_dicts([first, second], base=base, **options)
    states = [first.state_dict(), second.state_dict()]
    expected = submerge.merge_state_dicts(states, base=base.state_dict(), **options)
    assert list(found) == list(expected) == list(base.state_dict())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())
    mixed = submerge.merge_state_dicts({"a": first, "b": states[1]}, base=base, **options)
    assert all(torch.equal(mixed[name], expected[name]) for name in expected)
    linear(3).load_state_dict(found)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (linear(0), "states: the models are a sequence or a mapping, not an object of type Sequential"),
        (
            linear(0).state_dict(),
            "0.weight: a model is a state dict or a module, not an object of type Tensor",
        ),
        (
            [linear(0), "folder"],
            r"states\[1\]: a model is a state dict or a module, not an object of type str",
        ),
    ],
)
def test_what_is_no_model(states: Any, message: str) -> None:
    with pytest.raises(submerge.RequestError, match=message):
        submerge.merge_state_dicts(states, method="linear", weight=1)


def test_adapters_are_not_merged_as_weights() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(linear(0), peft.LoraConfig(target_modules=["0"]))
    with pytest.raises(
        submerge.RequestError, match=r"states\[0\]: is a model with adapters of PEFT.*merge_adapters"
    ):
        submerge.merge_state_dicts([model, linear(1)], method="linear", weight=1)
    assert submerge.merge_state_dicts([model.merge_and_unload(), linear(1)], method="linear", weight=1)
