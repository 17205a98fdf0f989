"""A routed model in use: groups, forms, presets, generation, odd numbers of tasks; and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _cli import cli, merge
from _mass_reference import answer, routed, selected
from _mass_tasks import Served, make
from _models import ROOM, contents

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(bert: Served) -> Any:
    return submerge.load(bert.merged("default"))


def one(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: value[row : row + 1] for name, value in inputs.items()}


# Routing


def test_route_says_what_a_pass_does(model: Any, bert: Served) -> None:
    inputs, _ = bert.mixed()
    out, routing = model(**inputs), model.route(**inputs)
    assert routing.tasks == out.tasks
    assert torch.equal(routing.coefficients, out.coefficients)
    assert out.coefficients.shape == (8, 4)
    assert (out.coefficients.sum(1) - 1).abs().max() < 1e-6
    assert routing.selected == [(name,) for name in routing.tasks]


def test_the_first_pass_ends_at_the_last_site(bert: Served) -> None:
    inputs, _ = bert.mixed()
    whole = submerge.load(bert.merged("default"), head_evidence="none")
    early = submerge.load(bert.merged("default"), head_evidence="none", routing_layers="first:1")
    seen = []
    early.bert.encoder.layer[1].register_forward_pre_hook(lambda *_: seen.append(1))
    early.route(**inputs)  # explores the model once
    seen.clear()
    routing = early.route(**inputs, details=True)
    assert not seen, "the second layer is not run"
    assert routing.residuals.shape == (4, 8, 4)
    full = whole.route(**inputs, details=True).residuals
    assert torch.equal(routing.residuals, full[:4]), "what was seen is what the whole pass sees"


def test_samples_do_not_see_each_other(model: Any, bert: Served) -> None:
    inputs, _ = bert.mixed()
    out = model(**inputs)
    for row in range(8):
        alone = model(**one(inputs, row))
        assert alone.tasks == [out.tasks[row]]
        assert (alone.logits - out.logits[row]).nan_to_num(0).abs().max() < 1e-5


def test_groups_get_one_decision(model: Any, bert: Served) -> None:
    inputs, labels = bert.mixed(each=4)
    names = [f"task{t}" for t in labels]
    assert model.route(**inputs, group=names).tasks == [
        dict(zip(names, model.route(**inputs, group=names).tasks, strict=True))[n] for n in names
    ]
    scores = model.route(**inputs).scores
    grouped = model.route(**inputs, group=labels).scores
    for t in set(labels):
        rows = [i for i, label in enumerate(labels) if label == t]
        assert (grouped[rows] - scores[rows].mean(0)).abs().max() < 1e-9
    assert len(set(model.route(**inputs, group="batch").tasks)) == 1
    each = model.route(**inputs, group=torch.arange(len(labels)))
    assert each.tasks == model.route(**inputs).tasks, "groups of one are no groups"
    batched = submerge.load(bert.merged("default"), batch="batch")
    assert torch.equal(batched.route(**inputs).scores, model.route(**inputs, group="batch").scores)


def test_forms_leave_tasks_out(bert: Served) -> None:
    recipe = bert.recipe()
    for entry, form in zip(recipe["models"], ("single", "pair", "pair", "any"), strict=True):
        entry["parameters"] = {"form": form}
    out = bert.root / "forms"
    submerge.merge(recipe, out, settings=ROOM)
    model = submerge.load(out)
    inputs, _ = bert.mixed()
    assert set(model.route(**inputs, form="pair").tasks) <= {"task1", "task2", "task3"}
    assert set(model.route(**inputs, form="single").tasks) <= {"task0", "task3"}
    types = torch.zeros_like(inputs["input_ids"])
    types[:4, 5:] = 1
    tasks = model.route(**inputs, token_type_ids=types).tasks
    assert set(tasks[:4]) <= {"task1", "task2", "task3"}
    assert set(tasks[4:]) <= {"task0", "task3"}
    with pytest.raises(submerge.RequestError, match="form"):
        model.route(**inputs, form="triple")


def test_the_papers_preset(bert: Served) -> None:
    """One site of one layer, 1-3 tasks by their shares, the largest logit."""
    model = submerge.load(bert.merged("paper", preset="paper"))
    inputs, labels = bert.mixed(each=3)
    out = model(**inputs)
    assert [site.maps for site in model.router.sites] == [["bert.encoder.layer.1.intermediate.dense"]]
    sites = [["bert.encoder.layer.1.intermediate.dense"]]
    for row in range(len(labels)):
        some = one(inputs, row)
        scores = routed(bert.reference, bert.tuned[0], sites, some)
        tasks = selected(scores)
        assert out.routing.selected[row] == tuple(f"task{t}" for t in tasks)
        logits = {t: answer(bert.reference, bert.tuned[0], tasks, t, some).logits[0] for t in tasks}
        best = max(tasks, key=lambda t: float(logits[t].max()))
        assert out.tasks[row] == f"task{best}"
        width = len(logits[best])
        assert (out.logits[row, :width] - logits[best]).abs().max() < 1e-4
        assert out.logits[row, width:].eq(-torch.inf).all()


def test_the_papers_layer_of_t5(tmp_path: Path) -> None:
    t5 = make("t5", tmp_path, count=2)
    model = submerge.load(t5.merged("paper", preset="paper"))
    found = model.route(**t5.mixed()[0], details=True)
    assert found.sites == ("encoder.block.1.layer.0.SelfAttention.o",)


@pytest.mark.parametrize("select", ["threshold", "weighted"])
def test_the_papers_groups_average_residuals(bert: Served, select: str) -> None:
    """The authors' code averages what each task leaves unexplained, then makes z-scores and shares."""
    model = submerge.load(bert.merged("paper", preset="paper"), select=select)
    inputs, labels = bert.mixed(each=3)
    each = model.route(**inputs, details=True).residuals[0]
    batched = submerge.load(bert.merged("paper", preset="paper"), select=select, batch="batch")
    assert torch.equal(batched.route(**inputs).scores, model.route(**inputs, group="batch").scores)
    grouped, found = model.route(**inputs, group=labels), model.route(**inputs, group="batch")
    everything = range(len(labels))
    some = [(grouped, [i for i in everything if labels[i] == task]) for task in range(4)]
    for routing, rows in [*some, (found, list(everything))]:
        mean = each[rows].mean(0)
        wanted = (mean.mean() - mean) / (mean.std() + 1e-6) if select == "threshold" else -mean
        assert (routing.scores[rows] - wanted).abs().max() < 1e-5
        if select == "threshold":
            assert {routing.selected[i] for i in rows} == {tuple(f"task{t}" for t in selected(wanted))}
    if select == "threshold":
        plain = submerge.load(bert.merged("paper", preset="paper"), group_mean="scores")
        assert (plain.route(**inputs, group="batch").scores - found.scores).abs().max() > 1e-3


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


@pytest.mark.parametrize("aggregate", ["iso_c", "sum"])
@pytest.mark.parametrize(
    "settings", [{"score": "whitened"}, {"score": "gaussian"}, {"norm": "l1"}, {"pooling": "cls"}]
)
def test_other_routers_and_merges_run(bert: Served, aggregate: str, settings: dict[str, Any]) -> None:
    model = submerge.load(
        bert.merged("default"), aggregate=aggregate, select="weighted", threshold=0.1, **settings
    )
    inputs, _ = bert.mixed()
    out = model(**inputs)
    assert not out.logits.isnan().any()
    assert len(out.tasks) == 8


def test_mahalanobis_chooses_as_l2_does(bert: Served) -> None:
    inputs, _ = bert.mixed()
    plain, other = (
        submerge.load(bert.merged("default"), norm=norm, head_evidence="none")
        for norm in ("l2", "mahalanobis")
    )
    assert (plain.route(**inputs).scores - other.route(**inputs).scores).abs().max() < 1e-4


@pytest.mark.parametrize("first", ["base", "merged"])
def test_the_first_pass_is_the_bases_or_the_merges(bert: Served, first: str) -> None:
    model = submerge.load(bert.merged("default"), first_pass=first, head_evidence="none")
    inputs, _ = bert.mixed()
    out = model(**inputs)
    state = bert.reference.base if first == "base" else None
    for row in range(8):
        some = one(inputs, row)
        wanted = routed(bert.reference, bert.tuned[0], bert.sites, some, first=state)
        assert (out.routing.scores[row] - wanted).abs().max() < 1e-3
        task = int(wanted.argmax())
        logits = answer(bert.reference, bert.tuned[0], [task], task, some).logits[0]
        assert (out.logits[row, : len(logits)] - logits).abs().max() < 1e-4
    bases = [u.base for module in model.router.gated.modules.values() for u in module.updates.values()]
    if first == "base":
        assert all(base is None for base in bases), "no second copy of the weights is held"


def test_what_the_caller_knows_counts(model: Any, bert: Served) -> None:
    inputs, _ = bert.mixed()
    before = model.route(**inputs)
    nothing = model.route(**inputs, prior=torch.zeros(8, 4))
    assert torch.equal(nothing.scores, before.scores)
    prior = torch.zeros(8, 4)
    prior[:, 2] = 1000
    assert model(**inputs, prior=prior).tasks == ["task2"] * 8
    assert model.route(**inputs, prior=prior).tasks == ["task2"] * 8
    prior = torch.zeros(8, 4).index_fill(1, torch.tensor([0, 3]), -torch.inf)
    assert set(model.route(**inputs, prior=prior).tasks) <= {"task1", "task2"}
    nobody = torch.zeros(8, 4).index_fill(0, torch.tensor([5]), -torch.inf)
    for wrong in (torch.zeros(8, 3), torch.full((8, 4), torch.nan), nobody, -nobody, [0.0] * 4):
        with pytest.raises(submerge.RequestError, match="prior"):
            model.route(**inputs, prior=wrong)


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


def test_the_card_says_how_to_load_it(bert: Served) -> None:
    card = (bert.merged("default") / "README.md").read_text()
    assert "It serves 4 tasks as one model: `task0`, `task1`, `task2`, `task3`." in card
    assert "model = submerge.load('default')" in card
    assert "task='task0'" in card


# Generation


def test_generation_routes_once_on_the_prompt(llama: Served) -> None:
    model = submerge.load(llama.merged("default"))
    inputs, labels = llama.mixed()
    inputs = {"input_ids": inputs["input_ids"]}
    names = [f"task{t}" for t in labels]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    whole = model.generate(**inputs, task=names, **options)
    for row in range(len(labels)):
        alone = model.generate(**one(inputs, row), task=names[row], **options)
        assert whole[row, : alone.shape[1]].tolist() == alone[0].tolist()
    routed_once = model.generate(**inputs, **options)
    tasks = model.route(**inputs).tasks
    assert torch.equal(routed_once, model.generate(**inputs, task=tasks, **options))
    beams = model.generate(inputs["input_ids"], task=names, num_beams=2, num_return_sequences=2, **options)
    assert beams.shape[0] == 2 * len(labels)
    for row in range(len(labels)):
        alone = model.generate(
            **one(inputs, row), task=names[row], num_beams=2, num_return_sequences=2, **options
        )
        assert beams[2 * row : 2 * row + 2, : alone.shape[1]].tolist() == alone.tolist()


def test_encoder_decoders_generate(tmp_path_factory: pytest.TempPathFactory) -> None:
    t5 = make("t5", tmp_path_factory.mktemp("t5"))
    model = submerge.load(t5.merged("default"))
    inputs, labels = t5.mixed(each=1)
    names = [f"task{t}" for t in labels]
    options = {"max_new_tokens": 5, "do_sample": False}
    whole = model.generate(**inputs, task=names, **options)
    for row in range(len(labels)):
        alone = model.generate(**one(inputs, row), task=names[row], **options)
        assert whole[row, : alone.shape[1]].tolist() == alone[0].tolist()


# Numbers of tasks


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


# What is refused


def refusal(call: Any, *parts: str) -> None:
    with pytest.raises(submerge.RequestError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), caught.value


def test_wrong_calls_are_told(model: Any, bert: Served) -> None:
    inputs, _ = bert.mixed()
    refusal(lambda: model(**inputs, task="nobody"), "there is no task 'nobody'", "task0")
    refusal(lambda: model(**inputs, task=["task0"]), "task names 1 inputs, and there are 8")
    refusal(lambda: model(**inputs, group=[1, 2]), "group names 2 inputs, and there are 8")
    refusal(lambda: model(**inputs, labels=torch.zeros(8)), "labels")
    refusal(lambda: model(), "no input_ids to route")
    refusal(lambda: model(attention_mask=inputs["attention_mask"]), "no input_ids to route", "attention_mask")


def test_wrong_settings_are_told(bert: Served) -> None:
    out = bert.merged("default")
    refusal(lambda: submerge.load(out, selekt="top1"), "no setting 'selekt'", "select")
    refusal(lambda: submerge.load(out, select="top7"), "select must be one of top1")
    refusal(lambda: submerge.load(out, fixed="base"), "no setting 'fixed'")
    refusal(
        lambda: submerge.load(out, routing_layers="7").route(input_ids=torch.ones(1, 4).long()),
        "routing_layers",
    )
    refusal(lambda: submerge.load(bert.root / "base"), "there is no submerge.json")
    refusal(lambda: submerge.load(bert.root / "nowhere"), "there is no submerge.json")
    plain = bert.root / "plain"
    if not plain.exists():
        recipe = {**bert.recipe(), "merge_method": "tsv_m", "models": [{"model": str(bert.root / "base")}]}
        recipe["models"] = [{"model": str(bert.root / "full")}]
        bert.merged("full", rank=48)
        submerge.merge(recipe, plain, settings=ROOM)
    refusal(lambda: submerge.load(plain), "keeps no gate")


def damaged(folder: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    return copied


def test_a_damaged_bank_is_told(bert: Served, tmp_path: Path) -> None:
    out = damaged(bert.merged("default"), tmp_path)
    bank = out / "bank.safetensors"
    whole = bank.read_bytes()
    bank.write_bytes(whole[:-100])
    refusal(lambda: submerge.load(out), "truncated")
    assert cli("verify", out, "--no-load").code == 1
    tensors = load_file(bert.merged("default") / "bank.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith(".left")))
    save_file(tensors, bank)
    refusal(lambda: submerge.load(out), "the bank is not what submerge.json says")
    bank.unlink()
    refusal(lambda: submerge.load(out), "does not exist")
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    bank.write_bytes(flipped)
    result = cli("verify", out, "--no-load")
    assert result.code == 1
    assert "not those that were written" in result.out
    bank.write_bytes(whole)
    assert cli("verify", out, "--no-load").code == 0
    manifest = json.loads((out / "submerge.json").read_text())
    del manifest["gate"]["settings"]
    (out / "submerge.json").write_text(json.dumps(manifest))
    refusal(lambda: submerge.load(out), "damaged")


def write(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"parameters": {"routing_layers": "0,9"}}, ["routing_layers names layer 9", "0 to 1"]),
        ({"parameters": {"routing_layers": "nowhere"}}, ["no tensor has that in its name"]),
        ({"parameters": {"routing_layers": "depth:2"}}, ["routing_layers cannot be 'depth:2'"]),
        ({"parameters": {"rank": 2, "compression": "ratio:0.1"}}, ["both rank and compression"]),
        ({"parameters": {"compression": "much"}}, ["compression is 'much'"]),
        ({"parameters": {"select": [{"filter": "a", "value": "top1"}]}}, ["one value for all tensors"]),
        ({"merge_method": "tsv_m", "parameters": {}}, ["'name' says something about a task"]),
        ({"output": {"as": "adapter"}}, ["keeps a gate"]),
    ],
)
def test_wrong_recipes_exit_2(bert: Served, tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    result = merge(write(tmp_path / "r.yaml", bert.recipe() | change), tmp_path / "out")
    assert result.code == 2
    for part in parts:
        assert part in result.err, result.err


def test_tasks_that_do_not_fit_exit_2(bert: Served, tmp_path: Path) -> None:
    recipe = bert.recipe()
    recipe["models"][0]["head"] = "pooler.nothing"
    recipe["models"][1]["name"] = "task2"
    result = merge(write(tmp_path / "r.yaml", recipe), tmp_path / "out")
    assert result.code == 2
    assert "2 models are named 'task2'" in result.err
    recipe["models"][1]["name"] = "task1"
    result = merge(write(tmp_path / "r.yaml", recipe), tmp_path / "out")
    assert result.code == 2
    assert "named by head: pooler.nothing" in result.err
    recipe = bert.recipe()
    recipe["models"].append({"model": str(bert.root / "base2"), "name": "bare"})
    bert.base.save_pretrained(bert.root / "base2")
    result = merge(write(tmp_path / "r.yaml", recipe), tmp_path / "out")
    assert result.code == 2
    assert "no head is found in bare" in result.err
    many = bert.recipe()
    many["models"] = [{"model": str(bert.paths[0]), "name": f"t{i}"} for i in range(40)]
    result = merge(write(tmp_path / "r.yaml", many), tmp_path / "out")
    assert result.code == 2
    assert "40 tasks do not fit into weights of rank 32" in result.err


def test_tasks_of_other_bases_exit_2(bert: Served, llama: Served, tmp_path: Path) -> None:
    recipe = bert.recipe()
    recipe["models"][1]["model"] = str(llama.paths[0])
    result = merge(write(tmp_path / "r.yaml", recipe), tmp_path / "out")
    assert result.code == 2
    assert "tensors are missing" in result.err


def test_heads_of_several_kinds_are_told(bert: Served) -> None:
    out = bert.root / "kinds"
    shutil.copytree(bert.merged("default"), out)
    manifest = json.loads((out / "submerge.json").read_text())
    manifest["gate"]["tasks"][1]["architectures"] = ["BertForTokenClassification"]
    (out / "submerge.json").write_text(json.dumps(manifest))
    refusal(lambda: submerge.load(out), "not of one architecture", "task1: BertForTokenClassification")
    submerge.load(out, architecture="BertForSequenceClassification")
    refusal(lambda: submerge.load(out, architecture="Nothing"), "no architecture 'Nothing'")


# The folder


def test_bytes_do_not_depend_on_threads_and_a_stopped_run_resumes(
    bert: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submerge.engine.output import _run

    one_thread = submerge.Settings(threads=1, max_memory=64 * 10**9)
    three = submerge.Settings(threads=3, max_memory=64 * 10**9)
    submerge.merge(bert.recipe(), tmp_path / "a" / "out", settings=one_thread)
    submerge.merge(bert.recipe(), tmp_path / "b" / "out", settings=three)
    assert contents(tmp_path / "a" / "out") == contents(tmp_path / "b" / "out")

    class Stop(Exception):  # noqa: N818
        pass

    finished = _run.Run._finished

    def stop(self: Any, record: Any) -> None:
        finished(self, record)
        if "layer.1.output.dense" in self.plan.tensors[record.tensor].name:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(_run.Run, "_finished", stop)
        with pytest.raises(Stop):
            submerge.merge(bert.recipe(), tmp_path / "c" / "out", settings=one_thread)
    part = next((tmp_path / "c" / "out.incomplete" / ".bank").glob("*.safetensors"))
    part.unlink()  # what is lost is made again
    report = submerge.merge(bert.recipe(), tmp_path / "c" / "out", settings=one_thread, resume=True)
    assert report.resumed
    assert contents(tmp_path / "c" / "out") == contents(tmp_path / "a" / "out")


def test_plan_and_explain_know_the_gate(bert: Served, tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", bert.recipe())
    plan = cli("plan", path, "--json", "--max-memory", "64GB").json
    assert [task["name"] for task in plan["bank"]["tasks"]] == [f"task{i}" for i in range(4)]
    size = sum(t.nbytes for t in load_file(bert.merged("default") / "bank.safetensors").values())
    assert size <= plan["bank"]["most"] < 1.1 * size
    text = cli("plan", path, "--max-memory", "64GB")
    assert text.code == 0
    assert "4 tasks" in text.out
    assert "with the plain checkpoint at most" in text.out
    explained = cli("explain", path, "-t", "layer.0.output.dense.weight")
    assert explained.code == 0
    bank = load_file(bert.merged("default") / "bank.safetensors")
    told = {
        line["tensor"]: line["keeps"]
        for line in cli("explain", path, "-t", "*", "--json").json
        if "keeps" in line
    }
    name = next(n for n in told if n.endswith("layer.0.output.dense.weight"))
    rank = bank[f"tasks.1.{name}.values"].numel()
    size = sum(bank[f"tasks.1.{name}.{part}"].nbytes for part in ("left", "values", "right"))
    assert told[name][1] == {"task": "task1", "rank": rank, "bytes": size}
    assert f"keeps  task1: at most rank {rank}, " in explained.out
    norm = next(n for n in told if n.endswith("layer.0.output.LayerNorm.weight"))
    assert told[norm][1] == {"task": "task1", "bytes": bank[f"tasks.1.{norm}.whole"].nbytes}
    heads = sum(tensor.nbytes for key, tensor in bank.items() if key.startswith("heads."))
    assert heads + sum(k["bytes"] for each in told.values() for k in each) == plan["bank"]["most"]
