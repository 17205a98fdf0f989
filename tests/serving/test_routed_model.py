"""A loaded model in use: samples, heads, features, precisions, copies, odd numbers of tasks."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _mass_reference import answer
from _mass_tasks import Served, one
from _models import ROOM

pytest.importorskip("transformers")


def refusal(call: Any, *parts: str) -> None:
    with pytest.raises(submerge.RequestError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), caught.value


def test_samples_do_not_see_each_other(model: Any, bert: Served) -> None:
    inputs, _ = bert.mixed()
    out = model(**inputs)
    for row in range(8):
        alone = model(**one(inputs, row))
        assert alone.tasks == [out.tasks[row]]
        assert (alone.logits - out.logits[row]).nan_to_num(0).abs().max() < 1e-5


@pytest.mark.parametrize("how", ["max", "avg"])
def test_heads_compete(bert: Served, how: str) -> None:
    settings: dict[str, Any] = {"select": "threshold", "threshold": 0.1, "max_tasks": 4}
    model = submerge.load(bert.merged("default"), heads=how, **settings)
    plain = submerge.load(bert.merged("default"), **settings)
    inputs, _ = bert.mixed()
    out = model(**inputs)
    assert out.routing.selected == plain(**inputs).routing.selected
    for row, tasks in enumerate(out.routing.selected):
        some = one(inputs, row)
        numbers = [int(name[-1]) for name in tasks]
        logits = {t: answer(bert.reference, bert.tuned[0], numbers, t, some).logits[0] for t in numbers}
        score = {t: float(x.max() if how == "max" else x.mean()) for t, x in logits.items()}
        assert out.tasks[row] == f"task{max(score, key=score.__getitem__)}"


@pytest.mark.parametrize("fixed", ["base", "iso_c"])
def test_other_checkpoints_give_the_same_tasks(bert: Served, fixed: str) -> None:
    model = submerge.load(bert.merged(f"fixed-{fixed}", fixed=fixed))
    inputs, labels = bert.mixed()
    out = model(**inputs, task=[f"task{t}" for t in labels])
    for row, task in enumerate(labels):
        logits = answer(bert.reference, bert.tuned[0], [task], task, one(inputs, row)).logits[0]
        assert (out.logits[row, : len(logits)] - logits).abs().max() < 1e-4


def test_without_heads_there_are_features(bert: Served) -> None:
    model = submerge.load(bert.merged("default"), features=True)
    assert type(model).__name__ == "BertModel"
    inputs, labels = bert.mixed()
    out = model(**inputs, task=[f"task{t}" for t in labels])
    plain = copy.deepcopy(bert.base).eval()
    for row, task in enumerate(labels):
        state = bert.reference.merged([task])
        plain.load_state_dict({name.removeprefix("bert."): values for name, values in state.items()})
        with torch.no_grad():
            wanted = plain(**one(inputs, row)).last_hidden_state[0]
        assert (out.last_hidden_state[row] - wanted).abs().max() < 1e-4
    whole = submerge.load(bert.merged("default"), head_evidence="none")
    assert model.route(**inputs).tasks == whole.route(**inputs).tasks


def test_full_rank_is_the_fine_tune_itself(bert: Served) -> None:
    model = submerge.load(bert.merged("full", rank=48))
    inputs, labels = bert.mixed()
    out = model(**inputs, task=[f"task{t}" for t in labels])
    for row, task in enumerate(labels):
        with torch.no_grad():
            logits = bert.tuned[task](**one(inputs, row)).logits[0]
        assert (out.logits[row, : len(logits)] - logits).abs().max() < 1e-4


def test_half_precision_banks(bert: Served) -> None:
    model = submerge.load(bert.merged("half", bank_dtype="bfloat16"))
    inputs, labels = bert.mixed()
    out = model(**inputs, task=[f"task{t}" for t in labels])
    exact = submerge.load(bert.merged("default"))(**inputs, task=[f"task{t}" for t in labels])
    assert (out.logits - exact.logits).nan_to_num(0).abs().max() < 0.05
    assert model.bert.encoder.layer[0].output.dense.submerge.updates["weight"].up.dtype == torch.bfloat16


def test_the_model_is_copied_and_saved_as_what_it_is(model: Any, bert: Served, tmp_path: Path) -> None:
    inputs, _ = bert.mixed()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**inputs).logits, model(**inputs).logits)
    assert not any("submerge" in name for name in model.state_dict())


@pytest.mark.parametrize("option", [{"variant": "fp16"}, {"push_to_hub": True}, {"state_dict": {}}])
def test_options_of_a_copy_that_would_be_left_out_are_refused(
    model: Any, tmp_path: Path, option: dict[str, Any]
) -> None:
    refusal(lambda: model.save_pretrained(tmp_path / "copy", **option), *option)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_few_tasks(bert: Served, count: int) -> None:
    recipe = bert.recipe()
    recipe["models"] = recipe["models"][:count]
    out = bert.root / f"few{count}"
    submerge.merge(recipe, out, settings=ROOM)
    model = submerge.load(out, select="threshold")
    inputs, _ = bert.mixed()
    found = model(**inputs)
    if count == 1:
        assert found.tasks == ["task0"] * 8
        assert found.coefficients.tolist() == [[1.0]] * 8
    else:
        assert found.coefficients.shape == (8, 2)
    assert not found.logits.isnan().any()


def test_copies_and_the_base_itself_are_tasks_like_others(bert: Served) -> None:
    idle = bert.root / "idle"
    twin = copy.deepcopy(bert.tuned[0])
    twin.bert.load_state_dict(bert.base.state_dict(), strict=False)
    twin.save_pretrained(idle)
    recipe = bert.recipe()
    first = recipe["models"][0]["model"]
    recipe["models"] = [
        {"model": first, "name": "one"},
        {"model": f"{first}/", "name": "two"},
        {"model": str(idle), "name": "idle"},
    ]
    out = bert.root / "copies"
    submerge.merge(recipe, out, settings=ROOM)
    assert not any(name.startswith("tasks.2.") for name in load_file(out / "bank.safetensors"))
    model = submerge.load(out, select="threshold", threshold=0.01, head_evidence="none")
    inputs, _ = bert.mixed()
    found = model(**inputs)
    assert {len(some) for some in found.routing.selected} == {3}, "copies and all run together"
    assert not found.logits.isnan().any()
    assert "idle" not in model.route(**inputs).tasks, "what explains nothing is nobody's first choice"
    one_, two = (model(**inputs, task=name).logits for name in ("one", "two"))
    assert (one_ - two).nan_to_num(0).abs().max() < 1e-6
    with torch.no_grad():
        wanted = twin.eval()(**inputs).logits
    assert (model(**inputs, task="idle").logits[:, :2] - wanted).abs().max() < 1e-4


def test_classes_have_their_tasks_names(bert: Served, tmp_path: Path) -> None:
    """Heads of 2, 5, 1 and 3 outputs: named by their tasks, as transformers names them, a number, several."""
    shutil.copytree(bert.merged("default"), tmp_path / "named")
    manifest = json.loads((tmp_path / "named" / "submerge.json").read_text())
    first, second, _, last = manifest["gate"]["tasks"]
    first["id2label"] = {"0": "bad", "1": "good"}
    second.pop("id2label", None)
    last |= {"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "multi_label_classification"}
    (tmp_path / "named" / "submerge.json").write_text(json.dumps(manifest))
    model = submerge.load(tmp_path / "named")
    inputs, labels = bert.mixed()
    out = model(**inputs, task=[f"task{t}" for t in labels])
    for row, task in enumerate(labels):
        logits = out.logits[row, : (2, 5, 1, 3)[task]]
        best = int(logits.argmax())
        several = [name for name, x in zip("abc", logits.tolist(), strict=False) if x > 0]
        assert out.labels[row] == [("bad", "good")[best % 2], f"LABEL_{best}", None, several][task]
    assert len(model(**inputs).labels) == len(labels)


def test_a_pipeline_shows_the_tasks_names_of_classes(bert: Served, tmp_path: Path) -> None:
    """It has one table of names: of tasks that call a class otherwise it shows all."""
    transformers = pytest.importorskip("transformers")
    shutil.copytree(bert.merged("default"), tmp_path / "named")
    manifest = json.loads((tmp_path / "named" / "submerge.json").read_text())
    first, second, third, last = manifest["gate"]["tasks"]
    first["id2label"] = {"0": "bad", "1": "good"}
    second["id2label"] = {str(n): name for n, name in enumerate("vwxyz")}
    last["id2label"] = {"0": "bad", "1": "good", "2": "x"}
    third["problem_type"] = "regression"
    (tmp_path / "named" / "submerge.json").write_text(json.dumps(manifest))
    model = submerge.load(tmp_path / "named")
    names = model.config.id2label
    assert names[0] == "bad (task0) or v (task1) or a number (task2) or bad (task3)"
    assert [names[n] for n in (2, 3, 4)] == ["x", "y", "z"]
    assert (model.config.problem_type, model.config.label2id["z"]) == (None, 4)
    inputs, labels = bert.mixed()
    row = labels.index(1)
    pipe = transformers.TextClassificationPipeline(model=model, tokenizer=transformers.BertTokenizer())
    out = model(**{name: x[row : row + 1] for name, x in inputs.items()}, task="task1")
    shown = pipe.postprocess(out)["label"]
    assert out.labels[0] in shown.replace(" (task1)", "").split(" or ")


def test_wrong_calls_are_told(model: Any, bert: Served) -> None:
    inputs, _ = bert.mixed()
    refusal(lambda: model(**inputs, task="nobody"), "there is no task 'nobody'", "task0")
    refusal(lambda: model(**inputs, task=["task0"]), "task names 1 inputs, and there are 8")
    refusal(lambda: model(**inputs, group=[1, 2]), "group names 2 inputs, and there are 8")
    refusal(lambda: model(**inputs, labels=torch.zeros(8)), "labels")
    refusal(lambda: model(), "no input_ids to route")
    refusal(lambda: model(attention_mask=inputs["attention_mask"]), "no input_ids to route", "attention_mask")
