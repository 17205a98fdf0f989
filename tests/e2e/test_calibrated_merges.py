"""Merges of adapters that PEFT made, with weights that are learned from data, or from a file."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _adapters import far, make_tuned, peft_model
from _calibrated import Calibrated, make_calibrated
from _models import ROOM, quiet_transformers
from store.helpers_adapter import loaded
from submerge.calibrate import Calibration, calibrate_recipe
from submerge.engine import describe, explain
from submerge.errors import RequestError, WorkError

pytest.importorskip("transformers")
pytest.importorskip("peft")
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return make_calibrated(tmp_path_factory.mktemp("calibrated"))


@pytest.fixture(scope="module")
def calibration(made: Calibrated) -> Calibration:
    found = calibrate_recipe(made.recipe())
    found.save(made.root / "coefficients.json")
    return found


@pytest.fixture
def by_file(made: Calibrated, calibration: Calibration) -> dict[str, Any]:
    return made.recipe(data=False, coefficients=str(made.root / "coefficients.json"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def coefficients(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "coefficients.json").read_text())
    return found


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- in one go, and by the file ---------------------------------------------------------------------------


def test_one_merge_is_a_calibration_and_a_merge_by_its_file(
    made: Calibrated, calibration: Calibration, by_file: Mapping[str, Any], tmp_path: Path
) -> None:
    report = submerge.merge(made.recipe(), tmp_path / "one", settings=ROOM)
    submerge.merge(by_file, tmp_path / "two", settings=ROOM)
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert coefficients(one)["coefficients"] == coefficients(two)["coefficients"] == calibration.coefficients
    assert files(one) == files(two)
    assert report.calibration is not None
    assert report.calibration["loss"] == [calibration.loss[0], calibration.loss[-1]]
    assert report.calibration["steps"] == 2
    assert set(calibration.warnings) <= set(report.warnings)
    manifests = [json.loads((folder / "submerge.json").read_text()) for folder in (one, two)]
    assert manifests[0]["coefficients"] == manifests[1]["coefficients"]
    assert "coefficients" not in manifests[0]["recipe"]
    assert manifests[0]["recipe"]["models"][0]["data"] == str(made.root / "law.jsonl")
    for folder in (one, two):
        found = submerge.verify(folder)
        assert found.problems == []
        assert found.loaded == "LlamaForCausalLM"


def test_the_checkpoint_is_the_base_and_the_scaled_products(
    made: Calibrated, calibration: Calibration, by_file: Mapping[str, Any], tmp_path: Path
) -> None:
    submerge.merge(by_file, tmp_path / "out", settings=ROOM)
    expected = made.dense(calibration.coefficients, calibration.initial)
    assert far(weights(tmp_path / "out"), expected) < 1e-6
    learned = {c for of_module in calibration.coefficients.values() for c in of_module.values()}
    assert len(learned) > 4, "no two modules share a coefficient"
    model = quiet_transformers().AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert far({Q: model.get_parameter(f"{Q}.weight").detach()}, {Q: expected[f"{Q}.weight"]}) < 1e-6


@pytest.mark.parametrize("calibrates", [True, False])
def test_an_adapter_comes_out_exactly(
    made: Calibrated,
    calibration: Calibration,
    by_file: Mapping[str, Any],
    calibrates: bool,
    tmp_path: Path,
) -> None:
    recipe = (made.recipe() if calibrates else dict(by_file)) | {"output": {"as": "adapter"}}
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    expected = made.dense(calibration.coefficients, calibration.initial)
    assert far(loaded("llama", tmp_path / "out", made.state), expected) < 1e-5
    assert report.figures[f"{Q}.weight"]["rank"] == 7
    assert submerge.verify(tmp_path / "out").problems == []
    assert coefficients(tmp_path / "out")["coefficients"] == calibration.coefficients
    cut = recipe | {"output": {"as": "adapter", "rank": 5}}
    assert submerge.merge(cut, tmp_path / "cut", settings=ROOM).figures[f"{Q}.weight"]["rank"] == 5


def test_adapters_in_one_go_and_by_file_are_the_same(
    made: Calibrated, by_file: Mapping[str, Any], tmp_path: Path
) -> None:
    for name, recipe in {"one": made.recipe(), "two": by_file}.items():
        submerge.merge({**recipe, "output": {"as": "adapter"}}, tmp_path / name, settings=ROOM)
    one, two = (tmp_path / name / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_numbers_by_unit_scale_rank_one_parts(made: Calibrated, tmp_path: Path) -> None:
    by_unit = {Q: {"law": [0.5, -1.0, 0.0, 2.0], "chess": 0.25}}
    path = tmp_path / "units.json"
    path.write_text(json.dumps({"coefficients": by_unit, "initial": 0.3}))
    expected = made.dense(by_unit, 0.3)
    recipe = made.recipe(data=False, coefficients=str(path))
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert far(weights(tmp_path / "out"), expected) < 1e-6
    submerge.merge(recipe | {"output": {"as": "adapter"}}, tmp_path / "lora", settings=ROOM)
    assert far(loaded("llama", tmp_path / "lora", made.state), expected) < 1e-5


def test_numbers_by_unit_of_another_rank_are_refused(made: Calibrated, tmp_path: Path) -> None:
    path = tmp_path / "units.json"
    path.write_text(json.dumps({"coefficients": {Q: {"law": [1.0], "chess": [1.0, 2, 3]}}, "initial": 0}))
    with pytest.raises(
        RequestError, match=r"there are 1 coefficients by rank-one unit, and .*law has rank 4"
    ):
        submerge.plan(made.recipe(data=False, coefficients=str(path)), ROOM)


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["q_proj"], "lora_bias": True}],
    ids=["table", "biases"],
)
def test_what_has_no_units_has_one_number(made: Calibrated, options: Any, tmp_path: Path) -> None:
    """What is learned of a module with numbers by unit, and of tables, can be merged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model("llama", made.state, 5, r=3, **options).save_pretrained(str(tmp_path / "a"))
    model = {"model": str(tmp_path / "a"), "data": str(made.root / "law.jsonl")}
    units = {"parametrisation": "unit", "steps": 0, "initial": 0.3}
    recipe = made.recipe(models=[model], parameters=units)
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    learned = coefficients(tmp_path / "out")["coefficients"]
    assert learned[Q] == {"a": [0.3] * 3}
    assert learned.get("model.embed_tokens", {"a": 0.3}) == {"a": 0.3}
    by_hand = made.recipe(models=[{"model": model["model"]}], parameters={"weight": 0.3})
    submerge.merge(by_hand, tmp_path / "by-hand", settings=ROOM)
    assert far(weights(tmp_path / "out"), weights(tmp_path / "by-hand")) < 1e-6


def test_new_values_and_biases_are_scaled_too(made: Calibrated, tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["q_proj"], "bias": "lora_only", "modules_to_save": ["lm_head"]}
    tuned = make_tuned(tmp_path, "llama", options, options | {"modules_to_save": None})
    path = tmp_path / "c.json"
    path.write_text(
        json.dumps({"coefficients": {"lm_head": {"a0": 0.25}, Q: {"a0": -1, "a1": 0.5}}, "initial": 0.5})
    )
    recipe = tuned.recipe("nsc", coefficients=str(path))
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    found = weights(tmp_path / "out")
    for name, first in {"lm_head.weight": 0.25, f"{Q}.weight": -1, f"{Q}.bias": -1}.items():
        updates = [merged[name].double() - tuned.state[name].double() for merged in tuned.merged]
        expected = tuned.state[name].double() + first * updates[0] + 0.5 * updates[1]
        assert updates[0].abs().max() > 0.01, name
        assert far({name: found[name]}, {name: expected}) < 1e-6, name


# --- other methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cat", "task_arithmetic"])
def test_sums_by_a_file_are_those_of_nsc(
    made: Calibrated,
    calibration: Calibration,
    by_file: Mapping[str, Any],
    method: str,
    tmp_path: Path,
) -> None:
    submerge.merge({**by_file, "merge_method": method}, tmp_path / "out", settings=ROOM)
    assert far(weights(tmp_path / "out"), made.dense(calibration.coefficients, calibration.initial)) < 1e-6


def test_ties_by_a_file_is_ties_by_rules_for_each_module(
    made: Calibrated, calibration: Calibration, by_file: Mapping[str, Any], tmp_path: Path
) -> None:
    rules = made.recipe("ties", data=False, parameters={"density": 0.5})
    for entry in rules["models"]:
        name = Path(entry["model"]).name
        own = {m: c[name] for m, c in calibration.coefficients.items() if name in c}
        listed = [{"filter": f"{module}.", "value": value} for module, value in own.items()]
        entry["parameters"] = {"weight": [*listed, {"value": calibration.initial}]}
    submerge.merge(rules, tmp_path / "rules", settings=ROOM)
    submerge.merge(
        {**by_file, "merge_method": "ties", "parameters": {"density": 0.5}}, tmp_path / "file", settings=ROOM
    )
    rules_bytes, file_bytes = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("rules", "file"))
    assert rules_bytes == file_bytes
    assert not (tmp_path / "file" / "mergekit_config.yml").exists()


def test_weights_by_hand_need_no_data(made: Calibrated, tmp_path: Path) -> None:
    recipe = made.recipe(data=False, parameters={"weight": 0.5})
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert far(weights(tmp_path / "out"), made.dense({}, 0.5)) < 1e-6
    assert not (tmp_path / "out" / "coefficients.json").exists()


# --- the plan ---------------------------------------------------------------------------------------------


def test_a_plan_says_where_weights_will_come_from(made: Calibrated, by_file: Mapping[str, Any]) -> None:
    plan = submerge.plan(made.recipe(), ROOM)
    told = "learned before the merge, from data of 2 tasks in 2 steps"
    assert f"coefficients  {told}" in repr(plan)
    assert describe(plan)["coefficients"] == told
    (line,) = explain(plan, f"{Q}.weight")
    found = [(weight["value"], weight["why"]) for weight in line["options"]["weight"]]
    assert found == [(0.4, "initial, to be calibrated")] * 2
    (line,) = explain(submerge.plan(by_file, ROOM), f"{Q}.weight")
    assert {w["why"] for w in line["options"]["weight"]} == {by_file["coefficients"]}


def test_adapters_that_only_the_file_names_are_told(
    made: Calibrated, calibration: Calibration, tmp_path: Path
) -> None:
    by_module = {module: {**own, "lwa": 0.1} for module, own in calibration.coefficients.items()}
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"coefficients": by_module, "initial": 0.4}))
    plan = submerge.plan(made.recipe(data=False, coefficients=str(file)), ROOM)
    assert f"{file}: the coefficients of lwa act on no model of the recipe" in plan.warnings


def test_a_file_of_the_adapters_themselves_is_no_warning(by_file: Mapping[str, Any]) -> None:
    assert not [line for line in submerge.plan(by_file, ROOM).warnings if "coefficients" in line]


def test_the_plans_memory_holds_the_base(made: Calibrated, monkeypatch: pytest.MonkeyPatch) -> None:
    base = sum(tensor.nbytes for tensor in made.state.values())
    assert base < submerge.plan(made.recipe(), ROOM).budget.data_passes < 2 * base
    monkeypatch.setattr("submerge.engine.plan.tensors._memory.RESERVE", 0)
    monkeypatch.setattr("submerge.engine.plan.tensors._coefficients.FACTORS", 1 << 30)
    settings = replace(ROOM, max_memory=10**10)
    with pytest.raises(RequestError, match="do not hold the base, through which data runs before the merge"):
        submerge.plan(made.recipe(), settings)


def test_full_checkpoints_have_no_factors(made: Calibrated, tmp_path: Path) -> None:
    submerge.merge(made.recipe(data=False, parameters={"weight": 0.5}), tmp_path / "full", settings=ROOM)
    recipe = made.recipe()
    recipe["models"][1]["model"] = str(tmp_path / "full")
    with pytest.raises(RequestError, match="is a whole model, and nsc learns weights of adapters") as caught:
        submerge.plan(recipe, ROOM)
    assert "extract-lora" in str(caught.value)


def test_an_adapter_on_another_base_is_refused(made: Calibrated, tmp_path: Path) -> None:
    submerge.merge(made.recipe(data=False, parameters={"weight": 0.5}), tmp_path / "full", settings=ROOM)
    recipe = made.recipe()
    recipe["models"][1]["model"] = f"{tmp_path / 'full'}+{made.root / 'chess'}"
    for refused in (submerge.plan, calibrate_recipe):
        with pytest.raises(RequestError, match="is an adapter on"):
            refused(recipe)
    recipe["models"][1]["model"] = f"{made.base}+{made.root / 'chess'}"
    assert calibrate_recipe(recipe, steps=0).matrix.adapters == ("law", "chess")


def test_modules_of_another_base_are_refused(made: Calibrated, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"coefficients": {"h.0.attn": {"law": 1, "chess": 1}}}))
    for output in ("checkpoint", "adapter"):
        recipe = made.recipe(data=False, coefficients=str(path), output={"as": output})
        with pytest.raises(RequestError, match=r"no tensor of .* is of the modules h\.0\.attn"):
            submerge.plan(recipe, ROOM)


def test_another_adapter_of_the_same_name_is_refused(by_file: dict[str, Any], tmp_path: Path) -> None:
    """Unless the file is told to say nothing of the adapters, as one by hand does."""
    other = tmp_path / "law"
    shutil.copytree(by_file["models"][0]["model"], other)
    by_file["models"][0]["model"] = str(other)
    submerge.plan(by_file, ROOM)
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, other / "adapter_model.safetensors")
    with pytest.raises(
        RequestError, match=r"law is not the adapter with which .*coefficients\.json was"
    ) as caught:
        submerge.plan(by_file, ROOM)
    assert [problem.where for problem in caught.value.problems] == ["models[0]"]

    content = json.loads(Path(by_file["coefficients"]).read_text())
    del content["inputs"]
    by_file["coefficients"] = str(tmp_path / "numbers.json")
    Path(by_file["coefficients"]).write_text(json.dumps(content))
    submerge.plan(by_file, ROOM)


def test_an_adapter_with_another_scale_is_refused(by_file: dict[str, Any], tmp_path: Path) -> None:
    """The scale stands in the configuration, and not in the file of weights."""
    other = tmp_path / "chess"
    shutil.copytree(by_file["models"][1]["model"], other)
    by_file["models"][1]["model"] = str(other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"inference_mode": False}))
    submerge.plan(by_file, ROOM)
    for changed in ({"lora_alpha": config["lora_alpha"] + 1}, {"alpha_pattern": {"layers.0.*q_proj": 9}}):
        (other / "adapter_config.json").write_text(json.dumps(config | changed))
        with pytest.raises(RequestError, match=r"chess scales .*lora_B.* by .* was learned") as caught:
            submerge.plan(by_file, ROOM)
        assert [problem.where for problem in caught.value.problems] == ["models[1]"]


def test_another_base_of_the_same_names_is_refused(
    made: Calibrated, by_file: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.base, copy)
    by_file["base_model"] = str(copy)
    submerge.plan(by_file, ROOM)
    submerge.plan(by_file | {"tokenizer": {"source": "base", "pad_to_multiple_of": 7}}, ROOM)
    tensors = load_file(copy / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, copy / "model.safetensors")
    told = r"copy is not the model on which .*coefficients\.json was learned"
    with pytest.raises(RequestError, match=told) as caught:
        submerge.plan(by_file, ROOM)
    assert [problem.where for problem in caught.value.problems] == ["base_model"]
    with pytest.raises(RequestError, match=told):
        submerge.plan(by_file | {"output": {"as": "adapter"}}, ROOM)
    on_it = by_file | {"merge_method": "linear", "base_model": None}
    on_it["models"] = [{"model": f"{copy}+{entry['model']}"} for entry in by_file["models"]]
    with pytest.raises(RequestError, match=told):
        submerge.plan({key: value for key, value in on_it.items() if value}, ROOM)

    content = json.loads(Path(by_file["coefficients"]).read_text())
    del content["base"]
    by_file["coefficients"] = str(tmp_path / "c.json")
    Path(by_file["coefficients"]).write_text(json.dumps(content))
    (line,) = (line for line in submerge.plan(by_file, ROOM).warnings if "c.json" in line)
    assert line.partition(": ")[2].startswith("whether it was learned with this base was not checked: ")


def test_files_of_earlier_versions_serve_with_a_warning(by_file: dict[str, Any], tmp_path: Path) -> None:
    content = json.loads(Path(by_file["coefficients"]).read_text())
    del content["base"], content["inputs"]["law"]["scales"]
    by_file["coefficients"] = str(tmp_path / "c.json")
    Path(by_file["coefficients"]).write_text(json.dumps(content))
    (line,) = (line for line in submerge.plan(by_file, ROOM).warnings if "c.json" in line)
    assert "was learned with this base and these scales of the adapters was not checked" in line


# --- calibrate_recipe -------------------------------------------------------------------------------------


def test_all_problems_of_a_calibration_are_told_at_once(made: Calibrated, by_file: dict[str, Any]) -> None:
    by_file["models"] = [{"model": str(made.base / "law"), "name": "law"}, by_file["models"][1]]
    with pytest.raises(RequestError) as caught:
        calibrate_recipe(by_file)
    messages = [str(problem) for problem in caught.value.problems]
    assert len(messages) == 3
    assert sum("has no data to learn its weights from" in message for message in messages) == 2


def test_a_recipe_of_another_method_is_told_how_to(made: Calibrated) -> None:
    recipe = made.recipe("ties", data=False, parameters={"weight": 1})
    with pytest.raises(RequestError, match=r"ties learns no weights.*'merge_method: nsc'.*'coefficients'"):
        calibrate_recipe(recipe)


def test_measuring_moves_nothing(made: Calibrated) -> None:
    found = calibrate_recipe(made.recipe(), steps=0)
    assert len(found.loss) == 1
    assert {c for of_module in found.coefficients.values() for c in of_module.values()} == {0.4}


def test_the_papers_hooks_are_the_values_of_the_last_quarter(made: Calibrated) -> None:
    recipe = made.recipe(parameters={"preset": "paper", "steps": 0})
    recipe["models"] = recipe["models"][:1]
    assert calibrate_recipe(recipe).hooks == ("model.layers.1.self_attn.v_proj",)


def test_data_may_be_a_part_of_a_file(made: Calibrated, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (made.root / "law.jsonl").read_text().splitlines()]
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"question": row["text"]}) for row in rows))
    recipe = made.recipe()
    source = {"path": str(tmp_path / "asked.jsonl"), "columns": {"text": "question"}, "limit": 3}
    recipe["models"][0] |= {"data": source, "name": "lawyer"}
    found = calibrate_recipe(recipe, steps=0)
    assert found.matrix.data == found.matrix.adapters == ("lawyer", "chess")
    assert [of_input["items"] for of_input in found.inputs.values()] == [3, 4]


# --- interruption -----------------------------------------------------------------------------------------


class Stop(BaseException):
    """What ends a run from outside."""


@pytest.fixture
def stopped(made: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a merge that was ended between its calibration and its first tensor."""
    with monkeypatch.context() as patch:
        patch.setattr("submerge.engine._merge.Run.execute", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            submerge.merge(made.recipe(), tmp_path / "out", settings=ROOM)
    assert not (tmp_path / "out").exists()
    return tmp_path / "out"


def no_calibration(*_: Any, **__: Any) -> Any:
    raise AssertionError("the interrupted run has calibrated already")


def test_a_resumed_merge_takes_the_coefficients_that_are_there(
    made: Calibrated, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "out.incomplete" / "coefficients.json"
    before = left.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("submerge.calibrate.calibrate_recipe", no_calibration)
        report = submerge.merge(made.recipe(), stopped, settings=ROOM, resume=True)
    assert (stopped / "coefficients.json").read_bytes() == before
    assert report.calibration is not None
    submerge.merge(made.recipe(), tmp_path / "plain", settings=ROOM)
    for name in ("model.safetensors", "submerge.json"):
        assert (stopped / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_resumed_merge_of_another_recipe_is_refused(made: Calibrated, stopped: Path) -> None:
    recipe = made.recipe()
    recipe["parameters"]["steps"] = 3
    with pytest.raises(RequestError, match="made from another recipe, or from inputs that have changed"):
        submerge.merge(recipe, stopped, settings=ROOM, resume=True)


def test_a_resumed_merge_by_other_coefficients_is_refused(
    by_file: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(Path(by_file["coefficients"]).read_text())
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    recipe = by_file | {"coefficients": str(path)}
    with monkeypatch.context() as patch:
        patch.setattr("submerge.engine._merge.Run.execute", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    content["coefficients"][Q]["law"] += 1e-6
    path.write_text(json.dumps(content))
    with pytest.raises(RequestError, match="made from another recipe"):
        submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True)


def test_a_resumed_merge_of_other_scales_is_refused(
    made: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of adapters, which stand in their configurations: half of the tensors would have other ones."""
    shutil.copytree(made.root / "law", tmp_path / "law")
    recipe = made.recipe(data=False, models=[{"model": str(tmp_path / "law")}], parameters={"weight": 1})
    with monkeypatch.context() as patch:
        patch.setattr("submerge.engine._merge.Run.execute", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    path = tmp_path / "law" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    with pytest.raises(RequestError, match="from inputs that have changed"):
        submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True)


def test_damaged_coefficients_of_an_interrupted_run_are_learned_anew(
    made: Calibrated, stopped: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.incomplete" / "coefficients.json").write_text("{")
    submerge.merge(made.recipe(), stopped, settings=ROOM, resume=True)
    assert submerge.verify(stopped).problems == []


def test_an_interrupted_calibration_leaves_nothing(made: Calibrated, tmp_path: Path) -> None:
    def stop(step: Any) -> None:
        if step.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submerge.merge(made.recipe(), tmp_path / "out", settings=ROOM, calibration_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_the_place_of_the_output_is_refused_before_calibration(
    made: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("submerge.calibrate.calibrate_recipe", no_calibration)
    (tmp_path / "out.incomplete").mkdir()
    (tmp_path / "out.incomplete" / "diary.txt").write_text("mine")
    with pytest.raises(RequestError, match="something of this name exists that no merge made"):
        submerge.merge(made.recipe(), tmp_path / "out", settings=ROOM)


# --- what is written --------------------------------------------------------------------------------------


def test_verify_compares_the_coefficients(by_file: Mapping[str, Any], tmp_path: Path) -> None:
    submerge.merge(by_file, tmp_path / "out", settings=ROOM)
    path = tmp_path / "out" / "coefficients.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))  # written otherwise, with the same numbers
    assert submerge.verify(tmp_path / "out", load=False).problems == []
    content["coefficients"][Q]["law"] = 9
    path.write_text(json.dumps(content))
    (problem,) = submerge.verify(tmp_path / "out", load=False).problems
    assert problem == "coefficients.json: the numbers are not those of the merge"
    path.unlink()
    (problem,) = submerge.verify(tmp_path / "out", load=False).problems
    assert "the coefficients cannot be read" in problem


def test_coefficients_of_a_base_that_was_merged_are_not_carried(
    made: Calibrated, by_file: Mapping[str, Any], tmp_path: Path
) -> None:
    submerge.merge(by_file, tmp_path / "first", settings=ROOM)
    again = made.recipe("linear", data=False, models=[{"model": str(tmp_path / "first")}])
    del again["base_model"]
    submerge.merge(again | {"parameters": {"weight": 1}}, tmp_path / "second", settings=ROOM)
    assert "coefficients.json" not in files(tmp_path / "second")


def test_a_full_disk_is_told(
    by_file: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("submerge.engine.output._folder.os.replace", full)
    with pytest.raises(WorkError, match=r"coefficients\.json: cannot be written"):
        submerge.merge(by_file, tmp_path / "out", settings=ROOM)
    assert list(tmp_path.iterdir()) == []
