"""Coefficients that are learned: the loss, its steps, what is left alone, and what is told."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from _adapters import FIRST, SECOND, Tuned, make_tuned, peft_model
from _models import quiet_transformers
from calibrate.helpers_null_space import base_model, batch
from store.helpers_adapter import MODELS
from submerge import (
    NullSpaceCurve,
    RequestError,
    WorkError,
    learn_coefficients,
    null_space_curve,
    null_space_ratio,
)
from submerge.calibrate import Item, Step
from submerge.calibrate._learn import _is_on
from submerge.calibrate._objectives import OBJECTIVES
from submerge.gating import Observer, observe
from submerge.store import file_digest, model_digest, open_checkpoint

pytest.importorskip("peft")
DATA = {"a0": [batch(0), batch(1, size=2)], "a1": [batch(2)]}
LEARN = {"where_rising": "learn"}
Q0, V0, UP0 = (f"model.layers.0.{m}_proj" for m in ("self_attn.q", "self_attn.v", "mlp.up"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return make_tuned(tmp_path_factory.mktemp("learn"), "llama", FIRST, SECOND)


def learned(tuned: Tuned, **options: Any) -> Any:
    model = options.pop("model", None) or base_model(tuned)
    return learn_coefficients(model, list(tuned.adapters), DATA, **{**LEARN, **options})


def test_no_step_measures(tuned: Tuned) -> None:
    found = learned(tuned, steps=0, initial=0.3)
    matrix = null_space_ratio(base_model(tuned), list(tuned.adapters), DATA, scales=0.3)
    assert torch.equal(torch.isnan(found.matrix.values), torch.isnan(matrix.values))
    assert torch.allclose(found.matrix.values, matrix.values, atol=1e-12, equal_nan=True)
    curve = null_space_curve(base_model(tuned), list(tuned.adapters), DATA)
    assert torch.equal(found.curve.values, curve.values)
    assert {v for own in found.coefficients.values() for v in own.values()} == {0.3}
    assert found.coefficients[V0] == {"a0": 0.3}, "the second adapter does not change it"
    assert len(found.loss) == 1
    first = null_space_ratio(
        base_model(tuned), list(tuned.adapters), {k: v[:1] for k, v in DATA.items()}, scales=0.3
    ).matrix
    assert found.loss[0] == pytest.approx(float((first[0, 0] + first[1, 1]) / 2), abs=1e-12)
    assert found.isotropic["a0"] == pytest.approx((1 - 4 / 16) ** 0.5)
    assert found.seconds_per_step != found.seconds_per_step, "there is none"


def test_steps_lower_the_loss(tuned: Tuned) -> None:
    seen: list[Step] = []
    found = learned(tuned, steps=8, learning_rate=0.02, progress=seen.append)
    steps = [(s.number, s.total, s.loss) for s in seen if not s.measuring]
    assert steps == [(n, 8, x) for n, x in enumerate(found.loss)]
    measured = [s.number / s.total for s in seen if s.measuring]
    assert measured.count(1) == 2  # the curves, and the ratios at the end
    assert seen[0].measuring
    assert seen[-1].measuring
    assert found.loss[8] < found.loss[0], "both on the first batches"
    assert all(abs(v - 0.4) > 1e-3 for path in (Q0, V0, UP0) for v in found.coefficients[path].values())
    assert found.unreached == tuple(path.replace(".0.", ".1.") for path in (Q0, V0, UP0))[2:]
    assert found.seconds > 8 * found.seconds_per_step > 0
    assert found.peak_memory_bytes > 1 << 20


class Count(Observer):
    """Counts the calls of a module."""

    def __init__(self, calls: list[int], place: int) -> None:
        self.calls, self.place = calls, place

    def on_input(self, name: str, module: Any, x: Any) -> None:
        self.calls[self.place] += 1


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "mamba"])
def test_checkpointing_changes_nothing(kind: str, tmp_path: Path) -> None:
    names = {
        "llama": ["q_proj", "up_proj"],
        "gpt2": ["c_attn", "c_fc"],
        "bert": ["query", "output.dense"],
        "mamba": ["in_proj", "dt_proj"],
    }
    option = {"r": 2, "target_modules": names[kind], "fan_in_fan_out": kind == "gpt2"}
    tuned = make_tuned(tmp_path, kind, option, {**option, "r": 3})
    model = base_model(tuned)
    model.config.use_cache = True
    first = next(m for name, m in model.named_modules() if name.endswith(names[kind][0]))
    calls, found = [0, 0], []
    for checkpointing in (False, True):
        with observe({"": first}, Count(calls, checkpointing)):
            found.append(
                learned(tuned, model=model, steps=3, learning_rate=0.01, checkpointing=checkpointing)
            )
    plain, again = found
    assert calls[1] > calls[0], "layers ran again"
    assert again.loss == pytest.approx(plain.loss, abs=1e-12)
    for path, own in plain.coefficients.items():
        assert again.coefficients[path] == pytest.approx(own, abs=1e-9)
    assert model.config.use_cache
    assert not any("forward" in module.__dict__ for module in model.modules())


# --- the guard --------------------------------------------------------------------------------------------


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets what the curves are found to be."""

    def put(*values: list[float]) -> None:
        rows = torch.tensor(values, dtype=torch.float64)
        found = NullSpaceCurve(("a0", "a1"), (0.0, 0.5, 1.0), (UP0,), rows)
        monkeypatch.setattr("submerge.calibrate._run.first_curve", lambda *_: found)

    return put


FALLING, RISING = [0.9, 0.8, 0.7], [0.7, 0.8, 0.9]


def test_adapters_whose_ratio_rises_are_kept(tuned: Tuned, curve: Any) -> None:
    curve(RISING, FALLING)
    found = learned(tuned, steps=2, where_rising="keep")
    assert found.kept == ("a0",)
    assert {own["a0"] for own in found.coefficients.values()} == {0.4}
    assert found.coefficients[Q0]["a1"] != 0.4
    assert found.warnings == found.curve.warnings != ()
    assert found.loss[0] == learned(tuned, steps=0).loss[0], "it is the mean over all tasks"
    assert V0 not in found.unreached, "it is kept on purpose"


def test_they_are_learned_if_told_so(tuned: Tuned, curve: Any) -> None:
    curve(RISING, FALLING)
    found = learned(tuned, steps=2, where_rising="learn")
    assert found.kept == ()
    assert found.coefficients[Q0]["a0"] != 0.4
    assert found.warnings == found.curve.warnings != ()


def test_no_step_is_made_where_none_falls(tuned: Tuned, curve: Any) -> None:
    curve(RISING, RISING)
    found = learned(tuned, steps=2, where_rising="keep")
    assert (len(found.loss), found.kept, found.unreached) == (1, ("a0", "a1"), ())
    assert "no step was made" in found.warnings[-1]
    assert {value for own in found.coefficients.values() for value in own.values()} == {0.4}


def test_matching_needs_no_falling_ratio(tuned: Tuned, curve: Any) -> None:
    curve(RISING, RISING)
    found = learned(tuned, steps=2, where_rising="keep", objective="match")
    assert (len(found.loss), found.kept, found.warnings) == (3, (), ())


def test_the_curve_is_of_the_first_64_inputs(tuned: Tuned) -> None:
    large = [batch(seed, size=40) for seed in range(3)]
    data = {"a0": large, "a1": [batch(7, size=70), batch(8)]}
    found = learn_coefficients(base_model(tuned), list(tuned.adapters), data, steps=0)
    first = {name: inputs[:1] for name, inputs in data.items()}
    assert torch.equal(
        found.curve.values, null_space_curve(base_model(tuned), list(tuned.adapters), first).values
    )


# --- options ----------------------------------------------------------------------------------------------


def test_parametrisations(tuned: Tuned) -> None:
    by_type, by_adapter = (
        learned(tuned, steps=2, parametrisation=kind).coefficients for kind in ("type", "adapter")
    )
    for path, own in by_type.items():
        twin = path.replace("layers.1", "layers.0")
        assert own == by_type[twin], "modules of one kind share a coefficient, also behind the last hook"
    assert len({own["a0"] for own in by_type.values()}) == 3
    assert len({own["a0"] for own in by_adapter.values()}) == 1


def test_units(tuned: Tuned) -> None:
    by_unit = learned(tuned, steps=2, learning_rate=0.01, parametrisation="unit")
    assert {name: len(own) for name, own in by_unit.coefficients[Q0].items()} == {"a0": 4, "a1": 3}
    assert len(set(by_unit.coefficients[Q0]["a0"])) == 4
    assert by_unit.loss[0] == pytest.approx(learned(tuned, steps=0).loss[0], abs=1e-12)
    assert by_unit.coefficients[by_unit.unreached[0]] == {"a0": [0.4] * 4, "a1": [0.4] * 3}


def test_new_values_have_coefficients(tmp_path: Path) -> None:
    saved = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}
    tuned = make_tuned(tmp_path, "llama", saved, SECOND)
    for kind in ("module", "unit"):
        found = learned(tuned, steps=2, parametrisation=kind)
        assert found.coefficients["model.layers.0.input_layernorm"]["a0"] != 0.4
        assert "model.layers.0.input_layernorm" not in found.hooks


def test_bounds(tuned: Tuned) -> None:
    found = learned(tuned, steps=5, learning_rate=0.05, bounds=(0.38, 0.41))
    values = [value for own in found.coefficients.values() for value in own.values()]
    assert min(values) == 0.38 or max(values) == 0.41
    assert all(0.38 <= value <= 0.41 for value in values)


def test_a_pull_holds_coefficients_back(tuned: Tuned) -> None:
    free, held = (
        learned(tuned, steps=10, learning_rate=0.02, pull=pull).coefficients for pull in (0.0, 100.0)
    )
    far, near = (sum((v - 0.4) ** 2 for own in c.values() for v in own.values()) for c in (free, held))
    assert near < far / 4


def test_weight_decay_spares_what_no_gradient_reaches(tuned: Tuned) -> None:
    found = learned(tuned, steps=3, weight_decay=0.5)
    assert set(found.unreached) == {UP0.replace(".0.", ".1.")}
    assert set(found.coefficients[found.unreached[0]].values()) == {0.4}


def test_hooks_that_nothing_comes_before(tuned: Tuned) -> None:
    found = learned(tuned, steps=2, hooks=r"layers\.0\.self_attn\.q_proj", pull=1.0)
    assert len(found.unreached) == len(found.coefficients) == 6
    assert "no coefficient acts on the inputs" in found.warnings[-1]
    assert len(set(found.loss[::2])) == 1


def test_hooks_that_no_input_reaches_are_told(tmp_path: Path) -> None:
    """Mamba's mixer reads the weight of `dt_proj`, and never runs it."""
    tuned = make_tuned(tmp_path, "mamba", {"r": 2, "target_modules": ["in_proj", "dt_proj"]})
    found = learn_coefficients(base_model(tuned), tuned.adapters, [DATA["a0"]], steps=2, **LEARN)
    first, last = (f"backbone.layers.{layer}.mixer.dt_proj" for layer in range(2))
    assert found.warnings[0] == f"no input reached {last}, which have no ratio"
    assert found.coefficients[first]["a0"] != 0.4 == found.coefficients[last]["a0"]
    with pytest.raises(RequestError, match=r"loss is nan before any step — .* inputs that reach the hooks"):
        learn_coefficients(base_model(tuned), tuned.adapters, [DATA["a0"]], hooks="dt_proj")


def test_batches_come_in_turn_or_in_an_order_of_the_seed(tuned: Tuned) -> None:
    plain, again, drawn = (learned(tuned, steps=5, seed=seed) for seed in (0, 0, 3))
    assert plain.loss == again.loss
    assert plain.coefficients == again.coefficients
    assert plain.loss != drawn.loss


def test_a_model_in_float32_and_its_parameters(tuned: Tuned) -> None:
    model = base_model(tuned, torch.float32).requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = learned(tuned, model=model, steps=2)
    assert found.loss == pytest.approx(learned(tuned, steps=2).loss, abs=1e-5)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(torch.inference_mode(), id="inference_mode"),
        pytest.param(torch.no_grad(), id="no_grad"),
        pytest.param(torch.autocast("cpu", torch.bfloat16), id="autocast"),
    ],
)
def test_contexts_of_the_caller_change_nothing(tuned: Tuned, context: Any) -> None:
    model, wanted = base_model(tuned, torch.float32), learned(tuned, steps=2)
    with context:
        data = {name: [copy.deepcopy(one) for one in batches] for name, batches in DATA.items()}
        found = learn_coefficients(model, list(tuned.adapters), data, steps=2, **LEARN)
    assert found.loss == pytest.approx(wanted.loss, abs=1e-5)
    assert found.unreached == wanted.unreached
    assert found.coefficients[Q0] == pytest.approx(wanted.coefficients[Q0], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"steps": -1}, "steps: -1 is below 0 — give 0 or more"),
        (
            {"steps": 1.5, "seed": 0.5},
            "steps: takes a whole number, and not 1.5[\\s\\S]*seed: takes a whole number",
        ),
        ({"steps": True}, "steps: takes a whole number, and not True"),
        ({"bounds": (0.5,)}, r"bounds: \(0.5,\) are no two numbers"),
        ({"bounds": 1}, "bounds: takes a sequence or None, and not 1"),
        ({"bounds": (None, 1)}, "bounds: .* are no two numbers — .*math.inf"),
        (
            {"steps": "3", "learning_rate": "1e-3"},
            "steps: takes a whole number, and not '3'[\\s\\S]*and not '1e-3'",
        ),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is no rate"),
        ({"pull": float("inf")}, "pull: inf is no finite number from 0 on"),
        ({"weight_decay": -1}, "weight_decay: -1 is no finite number from 0 on"),
        ({"hooks": ["v_proj"]}, r"hooks: takes text, and not \['v_proj'\]"),
        ({"device": "gpu"}, "device: no such device: gpu — use cpu or cuda"),
        ({"initial": float("nan")}, "initial: nan is no coefficient"),
        ({"objective": "nullspace"}, "there is no objective 'nullspace' — did you mean 'null_space'"),
        (
            {"parametrisation": "layer"},
            "there is no parametrisation 'layer' — there are module, type, adapter, unit",
        ),
        ({"where_rising": "stop"}, "there is no where_rising 'stop'"),
        ({"bounds": (0.5, 1.0)}, r"bounds: the initial coefficient 0.4 is not in \[0.5, 1\]"),
        ({"dtype": "float8"}, "there is no dtype 'float8'"),
        ({"dtype": "bfloat16"}, "dtype: a model in memory is not converted to bfloat16"),
    ],
    ids=str,
)
def test_requests_that_are_wrong(tuned: Tuned, options: dict[str, Any], what: str) -> None:
    with pytest.raises(RequestError, match=what):
        learned(tuned, **options)


def test_a_model_in_memory_may_be_where_the_device_says(tuned: Tuned) -> None:
    assert learned(tuned, steps=0, device="cpu:0").loss == learned(tuned, steps=0).loss
    cuda = torch.device("cuda")
    assert _is_on(torch.device("cuda:1"), cuda)
    assert not _is_on(torch.device("cuda:1"), torch.device("cuda:0"))
    assert not _is_on(torch.device("cpu"), cuda)


def test_a_loss_that_is_no_number_ends_it(tuned: Tuned) -> None:
    with pytest.raises(RequestError, match="loss is nan after 1 steps — take a smaller learning_rate"):
        learned(tuned, steps=3, learning_rate=1e300)
    padding = {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.zeros(1, 4)}
    with pytest.raises(RequestError, match="loss is nan before any step — run it in float32"):
        learn_coefficients(base_model(tuned), list(tuned.adapters), [[padding], [padding]], **LEARN)


def test_bounds_may_be_infinite(tuned: Tuned) -> None:
    found = learned(tuned, steps=1, bounds=(0, float("inf")))
    assert json.loads(found.to_json())["settings"]["bounds"] == [0, None]


def test_each_adapter_needs_data(tuned: Tuned) -> None:
    with pytest.raises(RequestError, match="there is no data for a1"):
        learn_coefficients(base_model(tuned), list(tuned.adapters), {"a0": DATA["a0"]})


# --- the file, and folders --------------------------------------------------------------------------------


def test_a_folder_and_its_file(tuned: Tuned, tmp_path: Path) -> None:
    model = base_model(tuned, torch.float32)
    model.save_pretrained(tmp_path / "base")
    data = {**DATA, "other": [batch(5)]}
    found = learn_coefficients(tmp_path / "base", list(tuned.adapters), data, steps=1, **LEARN)
    memory = learn_coefficients(model, list(tuned.adapters), data, steps=1, **LEARN)
    assert set(found.coefficients) == set(memory.coefficients), "names are the folder's"
    assert found.loss == pytest.approx(memory.loss, abs=1e-6)
    found.save(tmp_path / "coefficients.json")
    read = json.loads((tmp_path / "coefficients.json").read_text())
    assert read == found.to_dict()
    assert read["coefficients"] == found.coefficients, "with all their digits"
    assert (read["version"], read["method"], read["initial"]) == (1, "null_space", 0.4)
    assert read["ratios_by_module"][V0.replace(".0.", ".1.")]["a0"]["a1"] is None
    assert set(read["ratios"]) == {"a0", "a1", "other"}
    assert [inputs["items"] for inputs in read["inputs"].values()] == [5, 3]
    assert read["inputs"]["a0"]["adapter"] == file_digest(tuned.adapters[0] / "adapter_model.safetensors")
    assert read["inputs"] == memory.to_dict()["inputs"]
    assert read["base"] == model_digest(open_checkpoint(str(tmp_path / "base")))
    assert memory.base is None
    assert read["settings"]["model"] == str(tmp_path / "base")
    assert read["settings"]["where_rising"] == "learn"
    assert list(tmp_path.glob("*.unfinished")) == []
    with pytest.raises(WorkError, match="writing the coefficients failed"):
        found.save(tmp_path / "nowhere" / "coefficients.json")


def test_inputs_are_encoded_once(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the digest, the curves, all steps and the ratios at the end."""
    calls: list[int] = []

    def encode(items: Sequence[Item], *_: Any, **__: Any) -> Any:
        calls.append(len(items))
        return batch(len(items[0].text), size=len(items))

    monkeypatch.setattr("submerge.calibrate._batches.encode", encode)
    texts = ["a", "ab", "abc", "abcd", "abcde"]
    found = learn_coefficients(
        base_model(tuned), list(tuned.adapters), [texts, texts], steps=4, batch_size=2, processor=len, **LEARN
    )
    assert calls == [2, 2, 1] * 2
    assert [one["items"] for one in found.inputs.values()] == [5, 5]


def test_a_folder_in_bfloat16(tuned: Tuned, tmp_path: Path) -> None:
    base_model(tuned, torch.float32).save_pretrained(tmp_path / "base")
    wide, narrow = (
        learn_coefficients(
            tmp_path / "base", list(tuned.adapters), DATA, steps=3, learning_rate=0.02, dtype=dtype, **LEARN
        )
        for dtype in ("float32", "bfloat16")
    )
    assert narrow.loss == pytest.approx(wide.loss, abs=0.02)
    moves = torch.tensor(
        [[c[path][k] - 0.4 for path in c for k in c[path]] for c in (wide.coefficients, narrow.coefficients)]
    )
    assert float(torch.corrcoef(moves)[0, 1]) > 0.9


def test_a_folder_with_the_names_of_an_earlier_version(tmp_path: Path) -> None:
    """transformers saves a ViT as it was called before, and loads it without its head."""
    option = {"r": 2, "target_modules": ["q_proj", "fc1"]}
    tuned = make_tuned(tmp_path, "vit", option)
    base_model(tuned, torch.float32).save_pretrained(tmp_path / "folder")
    data = [[{"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}]]
    found = learn_coefficients(tmp_path / "folder", tuned.adapters, data, steps=1, **LEARN)
    stored = {name.removesuffix(".weight") for name in load_file(tmp_path / "folder" / "model.safetensors")}
    assert set(found.coefficients) <= stored
    assert "vit.encoder.layer.0.attention.attention.query" in found.coefficients
    name = "vit.encoder.layer.1.attention.attention.query"
    for hooks in (name, "1.attention.q_proj", "last_quarter: query"):
        assert learn_coefficients(tmp_path / "folder", tuned.adapters, data, steps=0, hooks=hooks).hooks == (
            name,
        )
    with pytest.raises(RequestError, match=r"matches 'w_proj' — the adapters change vit\.encoder"):
        null_space_ratio(tmp_path / "folder", tuned.adapters, data, hooks="w_proj")


# --- identities of the loss -------------------------------------------------------------------------------


def test_one_adapter_with_coefficient_1_is_the_single_model(tuned: Tuned) -> None:
    single = base_model(tuned)
    single.load_state_dict(tuned.merged[1])
    found = learn_coefficients(base_model(tuned), tuned.adapters[1:], [DATA["a1"]], steps=0, initial=1.0)
    wanted = null_space_ratio(single, tuned.adapters[1:], [DATA["a1"]]).matrix
    assert found.loss[0] == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_order_of_the_tasks_does_not_matter(tuned: Tuned, objective: str) -> None:
    one, two = tuned.adapters
    forth, back = (
        learn_coefficients(
            base_model(tuned), adapters, DATA, steps=3, learning_rate=0.02, objective=objective, **LEARN
        )
        for adapters in ({"a0": one, "a1": two}, {"a1": two, "a0": one})
    )
    assert forth.loss == pytest.approx(back.loss, abs=1e-9)
    for path, own in forth.coefficients.items():
        assert back.coefficients[path] == pytest.approx(own, abs=1e-6)


def test_the_match_of_a_single_model_with_itself_is_perfect(tuned: Tuned) -> None:
    found = learn_coefficients(
        base_model(tuned), tuned.adapters[:1], [DATA["a0"]], steps=0, initial=1.0, objective="match"
    )
    assert found.loss == (0.0,)


def test_the_energy_of_one_position_is_the_ratio_squared(tuned: Tuned) -> None:
    """Of a single position the energy is Ω²."""
    one = {"input_ids": torch.tensor([[7]])}
    ratio, energy = (
        learn_coefficients(
            base_model(tuned), tuned.adapters[1:], [[one]], steps=0, hooks="1.*q_proj", objective=objective
        ).loss[0]
        for objective in ("null_space", "energy")
    )
    assert ratio**2 == pytest.approx(energy, abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_that_are_encoded_anew_each_time(tuned: Tuned, objective: str, monkeypatch: Any) -> None:
    """What is held for a batch is not taken for another one that gets its place in memory."""

    class Anew(Sequence[Any]):
        def __init__(self, batches: list[Any]) -> None:
            self.batches = batches

        def __len__(self) -> int:
            return len(self.batches)

        def __getitem__(self, index: Any) -> Any:
            return copy.deepcopy(self.batches[index])

    wanted = learned(tuned, steps=5, objective=objective)
    monkeypatch.setattr(
        "submerge.calibrate._measurement.read_data",
        lambda data, *_, **__: {name: Anew(list(batches)) for name, batches in data.items()},
    )
    found = learned(tuned, steps=5, objective=objective)
    assert found.loss == wanted.loss
    assert found.coefficients == wanted.coefficients
    assert found.inputs == wanted.inputs


def test_weights_of_experts_have_the_names_of_the_files(tmp_path: Path) -> None:
    """The model packs the experts of a layer, with one weight for all, and the files have them apart."""
    options = {"r": 2, "target_modules": ["q_proj", "o_proj"], "target_parameters": ["experts.down_proj"]}
    wrapped = peft_model("mixtral", None, 1, **options)
    MODELS["mixtral"](quiet_transformers()).save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(str(tmp_path / "a0"))
    data = {"a0": [{"input_ids": torch.arange(3, 13)[None]}]}
    found = learn_coefficients(
        str(tmp_path / "base"), {"a0": str(tmp_path / "a0")}, data, steps=1, where_rising="learn"
    )
    experts = [f"model.layers.0.block_sparse_moe.experts.{expert}.w2" for expert in range(4)]
    assert found.coefficients.keys() >= {*experts, "model.layers.1.self_attn.q_proj"}
    assert len({str(found.coefficients[name]) for name in experts}) == 1
