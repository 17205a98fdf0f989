"""Merges whose projectors are mixed: the bank has each, the checkpoint their mean, data gives prototypes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import submerge
from _cli import ROOM as ROOM_OPTIONS
from _cli import cli
from _models import ROOM
from _projectors import LANGUAGE, PROJECTOR, TASKS, LlavaTasks, make_llava_tasks
from submerge.engine import describe, explain
from submerge.errors import RequestError
from submerge.store import Manifest, PrototypeFile, model_digest, open_checkpoint, write_prototypes

pytest.importorskip("transformers")
pytest.importorskip("peft")
State = dict[str, torch.Tensor]
WEIGHT = {"parameters": {"weight": 0.5}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LlavaTasks:
    tasks = make_llava_tasks(tmp_path_factory.mktemp("projectors"))
    tasks.save(tasks.adapted("red-lora"), "red-tuned")
    tasks.adapt("factors-lora", 5, target_modules=f"{LANGUAGE}|.*{PROJECTOR}.linear_1")
    tasks.adapt("plain-lora", 6)
    tasks.adapt("tower-lora", 7, target_modules=r".*vision_tower.*q_proj")
    return tasks


@pytest.fixture(scope="module")
def merged(made: LlavaTasks) -> Path:
    """The merge of both adapters by `many`, with its folders of moments and of prototypes beside it."""
    return submerge.merge(made.recipe("many"), made.root / "merged", settings=ROOM).out


def projector(state: State) -> State:
    return {name[name.index(PROJECTOR) :]: tensor for name, tensor in state.items() if PROJECTOR in name}


def trained(made: LlavaTasks, adapter: str) -> State:
    return projector(made.adapted(adapter).state_dict())


def bank(out: Path, number: int) -> State:
    tensors, prefix = load_file(out / "bank.safetensors"), f"modules.{number}."
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def same(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name])


def test_each_projector_is_in_the_bank_and_their_mean_in_the_checkpoint(
    made: LlavaTasks, merged: Path
) -> None:
    own = [trained(made, f"{task}-lora") for task in TASKS]
    for number, projector_of_task in enumerate(own):
        same(bank(merged, number), projector_of_task)
    mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
    weights = load_file(merged / "model.safetensors")
    same(projector(weights), mean)
    base = load_file(made.path("base") / "model.safetensors")
    assert all(torch.equal(weights[name], base[name]) for name in base if "vision_tower" in name)
    assert not torch.equal(
        *(w["language_model.model.layers.0.self_attn.q_proj.weight"] for w in (weights, base))
    )
    report = submerge.verify(merged)
    assert report.sound, report.problems
    assert report.loaded == "LlavaForConditionalGeneration"


def test_the_manifest_and_the_card_say_how_it_is_loaded(merged: Path) -> None:
    manifest = Manifest.read(merged)
    assert manifest.gate is not None
    assert manifest.gate.method == "projectors"
    assert [(task["name"], task["group"]) for task in manifest.gate.tasks] == [("red", 0), ("blue", 1)]
    assert manifest.gate.settings["module"] == PROJECTOR
    assert manifest.recipe["projectors"]["mix"] == "prototypes"  # by the method's default
    treated = {name: record.treatment for name, record in manifest.tensors.items()}
    assert {treated[name] for name in treated if PROJECTOR in name} == {"mix"}
    assert {treated[name] for name in treated if "vision_tower" in name} == {"base", "keep"} & set(
        treated.values()
    )
    card = (merged / "README.md").read_text()
    assert "`red`, `blue`" in card
    assert "submerge.load('merged')" in card
    assert not (merged / "mergekit_config.yml").exists()


def test_projectors_that_are_mixed_need_no_moments(made: LlavaTasks, tmp_path: Path) -> None:
    report = submerge.merge(made.recipe("many"), tmp_path / "out", settings=ROOM)
    assert report.warnings == ()


def test_prototypes_are_the_means_of_what_the_projector_is_given(made: LlavaTasks, merged: Path) -> None:
    model, found = made.load(), load_file(merged / "bank.safetensors")
    for number, task in enumerate(TASKS):
        inputs = made.inputs(task, *range(6))
        with torch.no_grad():
            features = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        shown = features.hidden_states[-1][:, 1:].mean(1)  # [images, width]
        torch.testing.assert_close(found[f"prototypes.{number}"], shown.mean(0, keepdim=True))


def again(made: LlavaTasks, **more: Any) -> dict[str, Any]:
    """Return the recipe that merges by what lies beside the first merge, without data."""
    places = {key: str(made.root / f"merged.{key}") for key in ("moments", "prototypes")}
    return made.recipe("many", data=False, **places, **more)


def test_a_merge_by_its_prototypes_gives_the_same_bytes(
    made: LlavaTasks, merged: Path, tmp_path: Path
) -> None:
    out = submerge.merge(again(made), tmp_path / "again", settings=ROOM).out
    for file in ("model.safetensors", "bank.safetensors"):
        assert (out / file).read_bytes() == (merged / file).read_bytes()
    gates = [Manifest.read(folder).gate for folder in (merged, out)]
    assert gates[0] == gates[1]


def test_an_interrupted_run_takes_up_its_prototypes(
    made: LlavaTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, made_of = submerge.calibrate.task_prototypes, []

    def stopping(*args: Any, **more: Any) -> Any:
        made_of.append(more["count"])
        if len(made_of) == 2:
            raise KeyboardInterrupt
        return original(*args, **more)

    monkeypatch.setattr("submerge.calibrate.task_prototypes", stopping)
    recipe = made.recipe("task_arithmetic", projectors="mixed", **WEIGHT)
    with pytest.raises(KeyboardInterrupt):
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["red.safetensors"]
    submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True)
    assert len(made_of) == 3
    submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True, overwrite=True)
    assert len(made_of) == 3
    other = recipe | {"projectors": {"prototypes": 2}}
    submerge.merge(other, tmp_path / "out", settings=ROOM, resume=True, overwrite=True)
    assert made_of[3:] == [2, 2]


def test_tasks_on_the_same_images_are_told(made: LlavaTasks, tmp_path: Path) -> None:
    recipe = mixed(made)
    recipe["models"][1]["data"] = recipe["models"][0]["data"]
    warnings = submerge.merge(recipe, tmp_path / "one", settings=ROOM).warnings
    assert [line.partition(": ")[0] for line in warnings] == [
        f"the images of {task} overlap by 100% with those of {other}" for task, other in (TASKS, TASKS[::-1])
    ]
    recipe["projectors"] = {"key": "both"}
    assert not submerge.merge(recipe, tmp_path / "two", settings=ROOM).warnings


def test_questions_count_where_images_overlap_and_they_do_not(made: LlavaTasks, tmp_path: Path) -> None:
    recipe = mixed(made)
    lines = [json.loads(line) for line in made.path("red.jsonl").read_text().splitlines()]
    asked = "".join(json.dumps({**line, "text": "h h h h"}) + "\n" for line in lines)
    made.path("asked.jsonl").write_text(asked)
    recipe["models"][1]["data"] = str(made.path("asked.jsonl"))
    plan = submerge.plan(recipe, settings=ROOM)
    open_key = "discriminant of images, and of questions where images of two tasks overlap"
    assert describe(plan)["projectors"]["score"] == open_key
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert [line.partition(": ")[2] for line in report.warnings] == [
        "their questions count, too (key: both)"
    ] * 2
    gate = Manifest.read(report.out).gate
    assert gate is not None
    assert (gate.settings["score"], gate.settings["key"]) == ("discriminant", "both")
    by_files = mixed(made, data=False, prototypes=str(tmp_path / "out.prototypes"))
    plan = submerge.plan(by_files, settings=ROOM)
    assert plan.warnings == report.warnings
    assert describe(plan)["projectors"]["score"] == "discriminant of images and questions"
    again = submerge.merge(by_files, tmp_path / "again", settings=ROOM).out
    assert (again / "bank.safetensors").read_bytes() == (report.out / "bank.safetensors").read_bytes()
    model = submerge.load(report.out)
    answers = model(**made.inputs("red", 0, 1)).tasks, model(**made.inputs("asked", 0, 1)).tasks
    assert answers == (["red", "red"], ["blue", "blue"])


def test_prototypes_of_earlier_versions_are_compared_by_cosines(
    made: LlavaTasks, merged: Path, tmp_path: Path
) -> None:
    for task in TASKS:
        file = PrototypeFile.open(made.root / "merged.prototypes" / f"{task}.safetensors")
        assert file.statistics("images") is not None
        own = {"images": file.tensor("images"), "text": file.tensor("text")}
        write_prototypes(tmp_path / "old" / file.path.name, own, file.count, file.source)
    recipe = mixed(made, data=False, prototypes=str(tmp_path / "old"))
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    gate = Manifest.read(out).gate
    assert gate is not None
    assert "score" not in gate.settings
    with pytest.raises(RequestError, match="there are no statistics of images of red, blue"):
        submerge.plan(recipe | {"projectors": {"score": "discriminant"}}, settings=ROOM)
    recipe["prototypes"] = str(made.root / "merged.prototypes")
    asked = recipe | {"projectors": {"score": "prototypes"}}
    by_cosine = submerge.merge(asked, tmp_path / "cosine", settings=ROOM).out
    assert (by_cosine / "bank.safetensors").read_bytes() == (out / "bank.safetensors").read_bytes()


def test_prototypes_of_another_base_are_refused_and_of_an_unknown_one_told(
    made: LlavaTasks, merged: Path, tmp_path: Path
) -> None:
    recipe = mixed(made, data=False, prototypes=str(tmp_path))

    def unchecked(digest: dict[str, str]) -> list[str]:
        for task in TASKS:
            file = PrototypeFile.open(made.root / "merged.prototypes" / f"{task}.safetensors")
            source = {key: value for key, value in file.source.items() if key != "model_digest"} | digest
            tensors = {name: file.tensor(name) for name in file.shapes}
            write_prototypes(tmp_path / file.path.name, tensors, file.count, source)
        return [line for line in submerge.plan(recipe, settings=ROOM).warnings if "was not checked" in line]

    assert unchecked({"model_digest": model_digest(open_checkpoint(recipe["base_model"]))}) == []
    (line,) = unchecked({})
    assert line.startswith("red.safetensors, blue.safetensors: whether these prototypes are of this base")
    with pytest.raises(RequestError, match="made with another base than") as other:
        unchecked({"model_digest": "another"})
    assert len(other.value.problems) == 2


def test_a_discriminant_needs_images_that_differ(made: LlavaTasks, tmp_path: Path) -> None:
    for task in TASKS:
        line = made.path(f"{task}.jsonl").read_text().splitlines()[0]
        made.path(f"one-{task}.jsonl").write_text(line + "\n")
    recipe = mixed(made)
    for entry, task in zip(recipe["models"], TASKS, strict=True):
        entry["data"] = str(made.path(f"one-{task}.jsonl"))
    gate = Manifest.read(submerge.merge(recipe, tmp_path / "out", settings=ROOM).out).gate
    assert gate is not None
    assert gate.settings["temperature"] == 0.03
    asked = recipe | {"projectors": {"score": "discriminant"}}
    with pytest.raises(RequestError, match="images are all alike"):
        submerge.merge(asked, tmp_path / "no", settings=ROOM)
    position = recipe | {"projectors": {"score": "discriminant", "pooling": "position"}}
    with pytest.raises(RequestError, match="must be prototypes, with pooling: position"):
        submerge.plan(position, settings=ROOM)


def test_a_model_that_gives_nan_is_told(made: LlavaTasks, tmp_path: Path) -> None:
    recipe = made.recipe("many")
    shutil.copytree(made.path("red-lora"), tmp_path / "red-lora")
    path = tmp_path / "red-lora" / "adapter_model.safetensors"
    weights = load_file(path)
    next(t for n, t in weights.items() if "layers.0.mlp.down_proj.lora_B" in n).view(-1)[0] = torch.nan
    save_file(weights, path, {"format": "pt"})
    recipe["models"][0] |= {"model": str(tmp_path / "red-lora"), "name": "red"}
    with pytest.raises(RequestError, match=r"red-lora: what it does to language_model.* has NaN or Inf"):
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert not (tmp_path / "out").exists()


def test_a_file_of_others_is_not_replaced(made: LlavaTasks, tmp_path: Path) -> None:
    (tmp_path / "out.prototypes").mkdir()
    shutil.copy(made.path("base") / "model.safetensors", tmp_path / "out.prototypes" / "blue.safetensors")
    with pytest.raises(RequestError, match="is no file of prototypes"):
        submerge.merge(
            made.recipe("task_arithmetic", projectors="mixed", **WEIGHT), tmp_path / "out", settings=ROOM
        )
    assert [path.name for path in (tmp_path / "out.prototypes").iterdir()] == ["blue.safetensors"]


@pytest.mark.parametrize("shares", [False, True])
def test_a_state_that_grew_gives_what_the_recipe_gives(
    made: LlavaTasks, tmp_path: Path, shares: bool
) -> None:
    recipe = made.recipe("many", "blue", "red", projectors={"prototypes": 2, "key": "both"})
    recipe["models"].append(recipe["models"][1] | {"name": "some", "model": str(made.path("factors-lora"))})
    if shares:
        recipe["models"][2]["share_projector"] = "red"
    state = submerge.Continual.begin(tmp_path / "state", str(made.path("base")), missing="zero")
    for entry in recipe["models"]:
        share = entry.get("share_projector")
        state.add(entry["name"], entry["model"], entry["data"], prototypes=2, share_projector=share)
    grown = state.export(tmp_path / "grown", form="checkpoint", key="both", settings=ROOM).out
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    for file in ("model.safetensors", "bank.safetensors"):
        one, two = (load_file(folder / file) for folder in (grown, out))
        assert one.keys() == two.keys()
        for name in one:
            assert (one[name] - two[name]).norm() <= 1e-4 * one[name].norm(), f"{file}: {name}"
    gates = [Manifest.read(folder).gate for folder in (grown, out)]
    tasks = [{task["name"]: task["group"] for task in gate.tasks} for gate in gates if gate is not None]
    assert tasks[0] == tasks[1]
    assert gates[0] is not None
    assert gates[1] is not None
    assert gates[0].settings == gates[1].settings


METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.5},
    "linear": {"weight": 0.5},
    "tsv_m": {},
    "nsc": {"weight": 0.4},
    "regmean": {"statistics": "identity"},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_without_a_gate_leaves_projectors_to_the_mixture(
    made: LlavaTasks, merged: Path, method: str, tmp_path: Path
) -> None:
    mixed = made.recipe(method, projectors="mixed", parameters=METHODS[method], data=False)
    mixed["prototypes"] = str(made.root / "merged.prototypes")
    plain = made.recipe(method, parameters=METHODS[method], data=False)
    plain["models"] = [{"model": entry["model"]} for entry in plain["models"]]
    out, one = (submerge.merge(r, tmp_path / str(k), settings=ROOM).out for k, r in enumerate((mixed, plain)))
    weights, alone = (load_file(folder / "model.safetensors") for folder in (out, one))
    language = [name for name in weights if name.startswith("language_model")]
    assert all(torch.equal(weights[name], alone[name]) for name in language)
    assert (out / "bank.safetensors").read_bytes() == (merged / "bank.safetensors").read_bytes()
    assert not (one / "bank.safetensors").exists()
    assert submerge.verify(out, load=False).sound


@pytest.mark.parametrize("folder", ["red-tuned", "factors-lora"])
def test_projectors_of_checkpoints_and_of_factors(made: LlavaTasks, folder: str, tmp_path: Path) -> None:
    recipe = made.recipe("task_arithmetic", f"red:{folder}", "blue", projectors="mixed", **WEIGHT)
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    expected = trained(made, "red-lora" if folder == "red-tuned" else folder)
    same(bank(out, 0), expected)
    same(bank(out, 1), trained(made, "blue-lora"))
    assert not any(record.unused for record in Manifest.read(out).models)
    assert submerge.verify(out, load=False).sound


def test_a_model_that_leaves_the_projector_has_the_bases(made: LlavaTasks, tmp_path: Path) -> None:
    recipe = made.recipe("task_arithmetic", "red", "blue:plain-lora", projectors="mixed", **WEIGHT)
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    same(bank(out, 1), projector(load_file(made.path("base") / "model.safetensors")))
    assert submerge.verify(out, load=False).sound


def test_tasks_of_one_projector_have_all_their_prototypes(made: LlavaTasks, tmp_path: Path) -> None:
    names = ("first:plain-lora", "red", "blue")
    shutil.copy(made.path("red.jsonl"), made.path("first.jsonl"))
    recipe = made.recipe("task_arithmetic", *names, projectors={"prototypes": 2, "key": "both"}, **WEIGHT)
    recipe["models"][0]["share_projector"] = "blue"
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    manifest = Manifest.read(out)
    assert manifest.gate is not None
    assert [task["group"] for task in manifest.gate.tasks] == [0, 1, 0]
    same(bank(out, 0), trained(made, "blue-lora"))
    same(bank(out, 1), trained(made, "red-lora"))
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(out / "bank.safetensors").items()}
    assert (shapes["prototypes.0"], shapes["prototypes.1"]) == ((4, 16), (2, 16))
    assert (shapes["questions.0"], shapes["questions.1"]) == ((2, 16), (1, 16))
    bias = f"{PROJECTOR}.linear_1.bias"
    mean = (bank(out, 0)[bias] + bank(out, 1)[bias]) / 2
    torch.testing.assert_close(load_file(out / "model.safetensors")[bias], mean)


def test_several_projectors_of_tasks_that_share_one_are_averaged(made: LlavaTasks, tmp_path: Path) -> None:
    sharing = made.recipe("task_arithmetic", "red", "blue", projectors="mixed", **WEIGHT)
    third = {"model": str(made.path("factors-lora")), "name": "third", "share_projector": "red"}
    sharing["models"].append(third | {"data": str(made.path("red.jsonl"))})
    report = submerge.merge(sharing, tmp_path / "out", settings=ROOM)
    (warning,) = report.warnings
    assert "red, third share one projector, and have several" in warning
    own = [trained(made, name) for name in ("red-lora", "factors-lora", "blue-lora")]
    shared = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
    same(bank(report.out, 0), shared)
    mean = {name: (shared[name] + own[2][name]) / 2 for name in shared}
    same(projector(load_file(report.out / "model.safetensors")), mean)


def test_a_plan_says_whose_projectors_are_mixed_and_what_is_read(made: LlavaTasks, merged: Path) -> None:
    plan = submerge.plan(made.recipe("many"), settings=ROOM)
    told = describe(plan)
    size = sum(tensor.nbytes for tensor in bank(merged, 0).values())
    assert told["projectors"]["groups"] == [
        {"tasks": [task], "models": [str(made.path(f"{task}-lora"))], "bytes": size} for task in TASKS
    ]
    assert told["projectors"]["from"] == {task: str(made.path(f"{task}.jsonl")) for task in TASKS}
    stored = sum(tensor.nbytes for tensor in load_file(merged / "bank.safetensors").values())
    assert stored <= told["bank"]["most"] < 2 * stored
    assert "mixed for each image, one a task: red, blue" in repr(plan)
    (line,) = explain(plan, "linear_1.bias")
    assert line["treatment"] == "mix"
    assert line["why"] == "the mean of 2 projectors, whose outputs are mixed for each image"
    assert "options" not in line
    by_files = submerge.plan(again(made), settings=ROOM)
    assert describe(by_files)["projectors"]["from"]["red"].endswith("merged.prototypes/red.safetensors")


def test_progress_says_what_is_measured(
    made: LlavaTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submerge.cli import _progress

    monkeypatch.setattr(_progress, "FIRST", 0.0)
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(made.recipe("many")))
    lines = cli("merge", recipe, tmp_path / "out", *ROOM_OPTIONS).err.splitlines()
    measured = [line.split(",")[1].strip() for line in lines if line.startswith("measuring")]
    assert sorted(set(measured)) == ["inputs of layers", "prototypes of images"]


def test_the_command_line_says_it(made: LlavaTasks, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(made.recipe("many")))
    plan = cli("plan", recipe, *ROOM_OPTIONS)
    assert plan.code == 0, plan.err
    for line in (
        f"projector   red: of {made.path('red-lora')} (2.18 kB)",
        f"prototypes  blue: at most 1, from {made.path('blue.jsonl')}",
        "score       discriminant of images, and of questions where images of two tasks overlap",
        "keeps    a gate over the projectors of 2 tasks: red, blue",
    ):
        assert line in plan.out
    explained = cli("explain", recipe, "--tensor", "linear_1.bias").out
    assert "because  the mean of 2 projectors, whose outputs are mixed for each image" in explained
    done = cli("merge", recipe, tmp_path / "out", *ROOM_OPTIONS, "--verbose")
    assert done.code == 0, done.err
    assert "4 projectors, mixed for each image" in done.out
    assert "multi_modal_projector.linear_1.bias: projectors, mixed for each image: the mean of 2" in done.err


@pytest.mark.usefixtures("merged")
def test_many_merges_projectors_into_one_where_it_cannot_mix_them(made: LlavaTasks) -> None:
    places = {"moments": str(made.root / "merged.moments")}
    for recipe, why in (
        (made.recipe("many", data=False, **places), "no data for prototypes"),
        (made.recipe("many", output={"as": "adapter"}), "an adapter has no place"),
        (made.recipe("many", "red", "blue", "tower:tower-lora"), ""),
    ):
        if not why:
            shutil.copy(made.path("red.jsonl"), made.path("tower.jsonl"))
            why = "their encoders differ"
        plan = submerge.plan(recipe, settings=ROOM)
        assert plan.projectors is None
        assert [why in line for line in plan.warnings if "merged into one" in line] == [True]
    one = submerge.plan(made.recipe("many", "red", "blue:plain-lora"), settings=ROOM)
    assert (one.projectors, one.warnings) == (None, ())
    assert submerge.plan(made.recipe("many", projectors="merged"), settings=ROOM).projectors is None


def mixed(made: LlavaTasks, *names: str, **more: Any) -> dict[str, Any]:
    return made.recipe("task_arithmetic", *names, **{"projectors": "mixed", **WEIGHT, **more})


def without_projector(made: LlavaTasks) -> dict[str, Any]:
    from _models import quiet_transformers
    from submerge.deferred import quietly

    with quietly(quiet_transformers().logging):
        made.load().model.language_model.save_pretrained(made.path("language"))
    return mixed(made, "red:plain-lora", "blue:plain-lora") | {"base_model": str(made.path("language"))}


def other_tower(made: LlavaTasks) -> dict[str, Any]:
    model = made.load("red-tuned")
    with torch.no_grad():
        model.model.vision_tower.post_layernorm.weight += 1
    made.save(model, "tower-tuned")
    return mixed(made, "red:tower-tuned", "blue")


def other_form(made: LlavaTasks) -> dict[str, Any]:
    model = made.load("red-tuned")
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(16, 24)
    model.model.multi_modal_projector.linear_2 = torch.nn.Linear(24, 16)
    made.save(model, "wide-tuned")
    return mixed(made, "red:wide-tuned", "blue")


def other_settings(made: LlavaTasks, **options: Any) -> dict[str, Any]:
    folder = str(made.root / "merged.prototypes")
    return mixed(made, data=False, projectors=options, prototypes=folder)


def without_questions(made: LlavaTasks) -> dict[str, Any]:
    for task in TASKS:
        file = PrototypeFile.open(made.root / "merged.prototypes" / f"{task}.safetensors")
        own = {"images": file.tensor("images")}
        write_prototypes(made.root / "images.prototypes" / file.path.name, own, file.count, file.source)
    folder = str(made.root / "images.prototypes")
    return mixed(made, data=False, projectors={"key": "text"}, prototypes=folder)


def in_a_circle(made: LlavaTasks) -> dict[str, Any]:
    recipe = mixed(made)
    for entry, other in zip(recipe["models"], reversed(TASKS), strict=True):
        entry["share_projector"] = other
    return recipe


def all_of_one(made: LlavaTasks) -> dict[str, Any]:
    recipe = mixed(made)
    recipe["models"][0]["share_projector"] = "blue"
    return recipe


PROBLEMS = {
    "no projector": (without_projector, "it has no projector"),
    "adapted encoder": (lambda m: mixed(m, "red:tower-lora", "blue"), r"changes the encoder.*q_proj"),
    "trained encoder": (other_tower, r"changes the encoder.*post_layernorm\.weight"),
    "another form": (other_form, r"its projector is of another form.*linear_1\.bias"),
    "nothing to mix": (
        lambda m: mixed(m, "red:plain-lora", "blue:plain-lora"),
        "no model changes the projector",
    ),
    "one projector": (all_of_one, "all tasks share one projector"),
    "a circle": (in_a_circle, "share_projector of red, blue goes in a circle"),
    "no file": (
        lambda m: mixed(m, data=False, prototypes=str(m.root)),
        "there is no such file of prototypes",
    ),
    "another pooling": (lambda m: other_settings(m, pooling="position"), "made with pooling: mean"),
    "another number": (lambda m: other_settings(m, prototypes=3), "made with prototypes: 1"),
    "no questions": (without_questions, "its questions were not looked at"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_cannot_be_mixed_is_refused_before_any_work(made: LlavaTasks, merged: Path, case: str) -> None:
    recipe, message = PROBLEMS[case]
    with pytest.raises(RequestError, match=message):
        submerge.plan(recipe(made), settings=ROOM)


def test_tensors_that_no_projector_loads_are_refused_before_any_work(
    made: LlavaTasks, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(made.path("base"), base)
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if f"{PROJECTOR}.linear_1.weight" in name)
    extra = name.replace("linear_1", "linear_9")
    save_file(weights | {extra: weights[name].clone()}, base / "model.safetensors", metadata={"format": "pt"})
    recipe = made.recipe("many", projectors="mixed") | {"base_model": str(base)}
    with pytest.raises(RequestError, match=r"no parameters for .*linear_9.* write 'projectors: merged'"):
        submerge.plan(recipe, settings=ROOM)
    assert submerge.plan(recipe | {"projectors": "merged"}, settings=ROOM).projectors is None


def test_data_must_have_images_and_questions(made: LlavaTasks, tmp_path: Path) -> None:
    for row, kind in (({"text": "a"}, "texts"), ({"image": "red-0.png"}, "images")):
        made.path("bare.jsonl").write_text(json.dumps(row) + "\n")
        recipe = mixed(made)
        recipe["models"][1]["data"] = str(made.path("bare.jsonl"))
        with pytest.raises(RequestError, match=f"data of blue: there are {kind}, and projectors are mixed"):
            submerge.merge(recipe, tmp_path / "out", settings=ROOM)
        assert not list(tmp_path.iterdir())


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a parameter": (
        lambda b: b["tensors"].pop(f"modules.1.{PROJECTOR}.linear_1.bias"),
        "not all groups have",
    ),
    "a shape": (
        lambda b: b["tensors"][f"modules.1.{PROJECTOR}.linear_1.bias"].update(shape=[4, 4]),
        "have other shapes than in the checkpoint",
    ),
    "prototypes": (lambda b: b["tensors"].pop("prototypes.0"), "lacks prototypes.0"),
    "a width": (lambda b: b["tensors"]["prototypes.0"].update(shape=[2, 8]), "no vectors of one width"),
    "no vector": (lambda b: b["tensors"]["prototypes.0"].update(shape=[16]), "no vectors of one width"),
    "a discriminant": (lambda b: b["tensors"].pop("discriminants.1"), "lacks discriminants.1"),
    "its width": (
        lambda b: b["tensors"]["discriminants.1"].update(shape=[1, 16]),
        "discriminants.1 are no rows for the prototypes",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_compares_the_bank_with_the_checkpoint(merged: Path, damage: str, tmp_path: Path) -> None:
    shutil.copytree(merged, tmp_path / "out")
    change, message = DAMAGES[damage]
    content = json.loads((tmp_path / "out" / "submerge.json").read_text())
    change(content["bank"])
    (tmp_path / "out" / "submerge.json").write_text(json.dumps(content))
    assert any(
        re.search(message, problem) for problem in submerge.verify(tmp_path / "out", load=False).problems
    )


def test_verify_finds_other_settings(merged: Path, tmp_path: Path) -> None:
    for number, change in enumerate(({"pooling": "max"}, {"module": "resampler"}, {"key": "both"})):
        out = tmp_path / str(number)
        shutil.copytree(merged, out)
        content = json.loads((out / "submerge.json").read_text())
        content["gate"]["settings"] |= change
        (out / "submerge.json").write_text(json.dumps(content))
        assert not submerge.verify(out, load=False).sound
