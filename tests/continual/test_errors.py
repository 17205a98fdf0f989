"""What a state refuses, and that it is as it was then."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _adapters import peft_model
from _models import ROOM, quiet_transformers
from continual.conftest import Tasks, save_quietly
from store.helpers_adapter import MODELS
from submerge.algebra import BlockMoment, TriangleMoment
from submerge.continual import MeasuredTask
from submerge.continual._lpm import StoredTasks
from submerge.continual._state_folder import StateFolder
from submerge.store import FileTable

MAPS = ("self_attn.q_proj", "mlp.up_proj")


@pytest.fixture
def grown(made: Tasks, tmp_path: Path) -> submerge.Continual:
    found = submerge.Continual.begin(tmp_path / "state", made.base)
    found.add(*made.of("law"))
    return found


def other_base(made: Tasks, folder: Path) -> Path:
    """Copy the base with other values."""
    shutil.copytree(made.base, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t + 0.1 for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


# --- damage -----------------------------------------------------------------------------------------------


def test_a_manifest_that_is_damaged(grown: submerge.Continual, tmp_path: Path) -> None:
    path = tmp_path / "state/state.json"
    text = path.read_text()
    for broken, part in (
        (text[:50], "is not valid JSON"),
        (text.replace('"rank"', '"rnak"'), "is damaged"),
        (text.replace('"version": 1', '"version": 5'), "install that one, or a later one"),
        (text.replace('"submerge.continual"', '"other"'), "versions 1 to 4"),
        (text.replace('"rows": ', '"rows": "many", "more": '), "is damaged"),
        (text.replace('"per_token"', '"sometimes"'), "is damaged"),
        (text.replace('"full"', '"whole"'), "statistics is 'whole'"),
        *((json.dumps({**json.loads(text), "tasks": tasks}), "tasks is") for tasks in ("law", "", {}, None)),
        (json.dumps({**json.loads(text), "lpm": {}}), "energy is not said"),
        (text.replace('"keep": "full"', '"keep": "none"'), "keep is 'none', and running is None"),
        (
            json.dumps({**json.loads(text), "tasks": 2 * json.loads(text)["tasks"]}),
            "'law' is no name, or there",
        ),
        (text.replace('"name": "law"', '"name": "a/b"'), "'a/b' is no name"),
        (text.replace('"file": "tasks/', '"file": "tasks/../../'), "is damaged"),
        (text.replace('"file": "tasks/', '"file": "/tasks/'), "is damaged"),
    ):
        path.write_text(broken)
        with pytest.raises(submerge.RequestError, match=part):
            submerge.Continual(tmp_path / "state")
    path.write_text(text)
    assert submerge.Continual(tmp_path / "state").tasks == ("law",)


def test_what_a_manifest_says_of_a_projector_is_checked(grown: submerge.Continual, tmp_path: Path) -> None:
    path = tmp_path / "state/state.json"
    content = json.loads(path.read_text())
    whole = {"bytes": 0, "images": 8, "prototypes": 1, "group": "law", "nearest": "", "overlap": 0.25}
    content["options"]["pooling"] = "mean"

    def write(**changes: object) -> None:
        content["tasks"][0]["projector"] = whole | changes
        path.write_text(json.dumps(content))

    write(overlap=1)
    assert grown.record("law").projector is not None
    for key, value in (
        ("overlap", "much"),
        ("overlap", None),
        ("overlap", True),
        ("images", 1.5),
        ("nearest", None),
        ("group", "chess"),
    ):
        write(**{key: value})
        with pytest.raises(submerge.RequestError, match=f"is damaged .*{key} is {value!r}"):
            submerge.Continual(tmp_path / "state")
    write()
    content["base"]["revision"] = 5
    write()
    with pytest.raises(submerge.RequestError, match="revision is 5"):
        submerge.Continual(tmp_path / "state")


def test_files_that_are_damaged(grown: submerge.Continual, made: Tasks, tmp_path: Path) -> None:
    (file,) = (tmp_path / "state/tasks").iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(submerge.RequestError, match="its content is not what was written"):
        grown.export(tmp_path / "out")
    file.write_bytes(data[:-1])
    with pytest.raises(submerge.RequestError, match=r"has \d+ bytes, not"):
        grown.add(*made.of("chess"))
    file.unlink()
    with pytest.raises(submerge.RequestError, match="cannot be read"):
        grown.remove("law")
    assert not (tmp_path / "out").exists()
    file.write_bytes(data)
    assert grown.export(tmp_path / "out").rank == 4


def test_a_state_that_has_lost_its_manifest_is_no_place_for_a_new_one(
    grown: submerge.Continual, tmp_path: Path
) -> None:
    path = tmp_path / "state/state.json"
    path.unlink()
    with pytest.raises(submerge.RequestError, match=r"no state\.json — restore the folder from a copy"):
        submerge.Continual(tmp_path / "state")
    path.mkdir()
    with pytest.raises(submerge.RequestError, match=r"state\.json: is no file"):
        submerge.Continual(tmp_path / "state")


@pytest.mark.parametrize("keep", ["full", "none"])
def test_a_state_that_another_process_changes_meanwhile(made: Tasks, tmp_path: Path, keep: str) -> None:
    """A merge goes on with the files that it has open; one that has not opened them says what happened."""
    state = submerge.Continual.begin(tmp_path / "state", made.base, keep=keep)
    for name in ("law", "poems"):
        state.add(*made.of(name))
    reader = StateFolder(tmp_path / "state")
    manifest = reader.read()
    with FileTable() as table:
        tasks = StoredTasks(reader, manifest, manifest.lpm, table)
        before = {merged.name: merged.update.dense() for merged in tasks.merged()}
        tasks = StoredTasks(reader, manifest, manifest.lpm, table)
        again = {} if keep == "full" else {"model": made.of("law")[1], "data": made.of("law")[2]}
        state.remove("law", **again)
        after = {merged.name: merged.update.dense() for merged in tasks.merged()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with (
        FileTable() as table,
        pytest.raises(submerge.RequestError, match=r"another process.* run the command"),
    ):
        StoredTasks(reader, manifest, manifest.lpm, table)


def test_folders_in_the_place_of_files(grown: submerge.Continual, made: Tasks, tmp_path: Path) -> None:
    """One that no manifest names is the user's; of one that it does, the size may be right."""
    for name in ("tasks/own.safetensors", "state.json.unfinished.unfinished", "moments-0.safetensors"):
        (tmp_path / "state" / name).mkdir()
    grown.add(*made.of("poems"))
    grown.remove("poems")
    assert (tmp_path / "state/tasks/own.safetensors").is_dir()
    (file,) = (path for path in (tmp_path / "state/tasks").iterdir() if path.is_file())
    file.rename(tmp_path / "elsewhere")
    file.mkdir()
    manifest = tmp_path / "state/state.json"
    content = json.loads(manifest.read_text())
    content["tasks"][0]["bytes"] = file.stat().st_size
    manifest.write_text(json.dumps(content))
    with pytest.raises(submerge.RequestError, match="is no file — restore the folder"):
        grown.export(tmp_path / "out")


def test_there_is_nothing_to_export(made: Tasks, tmp_path: Path) -> None:
    with pytest.raises(submerge.RequestError, match="there are no tasks to merge"):
        submerge.Continual.begin(tmp_path / "state", made.base).export(tmp_path / "out")


# --- another base -----------------------------------------------------------------------------------------


def test_a_base_that_has_changed_or_moved(made: Tasks, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(made.base, base)
    found = submerge.Continual.begin(tmp_path / "state", str(base))
    found.add(*made.of("law"))
    other = other_base(made, tmp_path / "other")
    for change in (
        lambda: found.add(*made.of("chess"), base=str(other)),
        lambda: found.export(tmp_path / "out", form="checkpoint", base=str(other)),
    ):
        with pytest.raises(submerge.RequestError, match="is another model than the base"):
            change()
    shutil.rmtree(base)
    with pytest.raises(submerge.RequestError, match="where it is now with --base"):
        found.add(*made.of("chess"))
    found.add(*made.of("chess"), base=made.base)
    assert found.export(tmp_path / "lora").tasks == ("chess", "law")
    found.export(tmp_path / "moved", base=made.base)
    config = json.loads((tmp_path / "moved/adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == Path(made.base).resolve()
    assert made.base in (tmp_path / "moved/README.md").read_text()
    with pytest.raises(submerge.RequestError, match="is another model than the base"):
        found.export(tmp_path / "out", base=str(other))


def test_an_adapter_of_another_base(grown: submerge.Continual, made: Tasks, tmp_path: Path) -> None:
    task, model, data = made.of("chess")
    adapter = tmp_path / "adapter"
    shutil.copytree(model, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())

    def named(base: str) -> None:
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))

    named(str(other_base(made, tmp_path / "other")))
    with pytest.raises(submerge.RequestError, match="another model than the state's base"):
        grown.add(task, str(adapter), data)
    half = tmp_path / "half"
    shutil.copytree(made.base, half)
    tensors = load_file(half / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, half / "model.safetensors", {"format": "pt"})
    named(str(half))
    assert any(f"trained on {half}" in warning for warning in grown.add("half", str(adapter), data))
    config_of = json.loads((half / "config.json").read_text())
    quantised = {**config_of, "quantization_config": {"quant_method": "bitsandbytes"}}
    (half / "config.json").write_text(json.dumps(quantised))
    assert any(f"trained on {half}" in warning for warning in grown.add("quantised", str(adapter), data))
    named("someone/else")
    assert any("trained on someone/else" in warning for warning in grown.add(task, str(adapter), data))
    named(made.base)
    assert not any("trained on" in warning for warning in grown.add("again", str(adapter), data))


def test_an_adapter_of_another_shape(grown: submerge.Continual, made: Tasks, tmp_path: Path) -> None:
    t = quiet_transformers()
    import peft

    model = t.LlamaForCausalLM(
        t.LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4
        )
    )
    save_quietly(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])), tmp_path / "a")
    with pytest.raises(submerge.RequestError, match=r"but the base has \[16, 16\]"):
        grown.add("other", str(tmp_path / "a"), made.of("law")[2])
    assert grown.tasks == ("law",)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"use_dora": True}, "DoRA rescales the base's own weights"),
        ({"modules_to_save": ["norm"]}, "it was saved whole"),
        ({"bias": "lora_only"}, "it was saved whole"),
        ({"lora_bias": True}, "an update of a bias"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "it is no linear map of vectors"),
        ({"trainable_token_indices": [3]}, "some of its rows were saved"),
    ],
)
def test_what_least_squares_has_no_rule_for(
    grown: submerge.Continual, made: Tasks, tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    adapter = peft_model("llama", None, 5, **{"r": 2, "target_modules": ["q_proj"], **options})
    save_quietly(adapter, tmp_path / "a")
    with pytest.raises(submerge.RequestError, match="cannot be merged by least squares") as caught:
        grown.add("other", str(tmp_path / "a"), made.of("law")[2])
    assert part in str(caught.value)
    assert "train the task" in str(caught.value)
    assert grown.tasks == ("law",)


def test_a_head_that_was_trained_on_other_values_than_the_bases(
    grown: submerge.Continual, made: Tasks, tmp_path: Path
) -> None:
    """PEFT saves them beside the factors, and loads them in the place of the base's."""
    adapter = peft_model("llama", None, 5, r=2, target_modules=["q_proj", "lm_head"])
    save_quietly(adapter, tmp_path / "a")
    file = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.base_layer.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(submerge.RequestError, match=r"other values of lm_head\.weight than the base's"):
        grown.add("other", str(tmp_path / "a"), made.of("law")[2])
    assert grown.tasks == ("law",)


@pytest.mark.parametrize("keep", ["full", "none"])
def test_numbers_that_are_none(made: Tasks, tmp_path: Path, keep: str) -> None:
    state = submerge.Continual.begin(tmp_path / "state", made.base, keep=keep)
    state.add(*made.of("law"))
    before = {path: path.read_bytes() for path in (tmp_path / "state").rglob("*.*") if path.is_file()}
    _, model, data = made.of("law")
    shutil.copytree(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(submerge.RequestError, match=r": .* has NaN or Inf"):
        state.add("chess", str(tmp_path / "adapter"), data)
    after = {path: path.read_bytes() for path in (tmp_path / "state").rglob("*.*") if path.is_file()}
    assert after == before


def test_a_head_is_not_measured(grown: submerge.Continual, made: Tasks, tmp_path: Path) -> None:
    save_quietly(peft_model("llama", None, 5, r=2, target_modules=["q_proj", "lm_head"]), tmp_path / "a")
    with pytest.raises(submerge.RequestError, match=r"changes .*lm_head.*, whose inputs are not measured"):
        grown.add("other", str(tmp_path / "a"), made.of("law")[2])


def test_options_that_there_are_not(made: Tasks, tmp_path: Path) -> None:
    with pytest.raises(submerge.RequestError, match="did you mean 'ridge'"):
        submerge.Continual.begin(tmp_path / "state", made.base, rigde=1)
    found = submerge.Continual.begin(tmp_path / "state", made.base)
    found.add(*made.of("law"))
    with pytest.raises(submerge.RequestError, match="missing cannot be changed"):
        found.export(tmp_path / "out", missing="zero")
    with pytest.raises(submerge.RequestError, match=r"^scale: takes a number, and not '0\.5'"):
        found.export(tmp_path / "out", scale="0.5")
    assert not (tmp_path / "out").exists()
    assert found.export(tmp_path / "out", scale=None).out == tmp_path / "out", "as it was begun"


@pytest.mark.parametrize("option", [{"scale": 1e300}, {"ridge": 1e308}])
def test_a_merge_that_has_no_numbers(grown: submerge.Continual, tmp_path: Path, option: Any) -> None:
    with pytest.raises(submerge.WorkError, match=r"NaN or Inf in the update of model\.layers\.0"):
        grown.export(tmp_path / "out", **option)
    assert not list(tmp_path.glob("out*"))


def test_states_that_do_not_go_together(made: Tasks, grown: submerge.Continual, tmp_path: Path) -> None:
    submerge.Continual.begin(tmp_path / "other", str(other_base(made, tmp_path / "base")), ridge=0.1)
    with pytest.raises(submerge.RequestError) as caught:
        submerge.Continual.join(tmp_path / "state", tmp_path / "other", tmp_path / "out")
    assert "two bases" in str(caught.value)
    assert "other options: ridge 0.001 and 0.1" in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_a_conv1d_base(tmp_path: Path, made: Tasks) -> None:
    """GPT-2 stores its linear maps as [in, out]."""
    t = quiet_transformers()
    torch.manual_seed(0)
    MODELS["gpt2"](t).save_pretrained(tmp_path / "base")
    adapter = peft_model("gpt2", None, 1, r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    save_quietly(adapter, tmp_path / "a")
    found = submerge.Continual.begin(tmp_path / "state", str(tmp_path / "base"))
    found.add("one", str(tmp_path / "a"), [{"input_ids": torch.randint(64, (8, 12))}])
    out = found.export(tmp_path / "out").out
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "a", out))
    stem = "base_model.model.transformer.h.0.attn.c_attn"
    one, two = (f[f"{stem}.lora_B.weight"] @ f[f"{stem}.lora_A.weight"] for f in (first, second))
    scale = adapter.peft_config["default"].lora_alpha / 2
    torch.testing.assert_close(two, scale * one, atol=1e-5, rtol=1e-4)
    assert json.loads((out / "adapter_config.json").read_text())["fan_in_fan_out"] is True


# --- inputs -----------------------------------------------------------------------------------------------


def test_experts_that_the_model_packs(tmp_path: Path) -> None:
    """A file of Mixtral has a matrix of each expert, and so may adapters of it; the model has one of all."""
    t = quiet_transformers()
    MODELS["mixtral"](t).save_pretrained(tmp_path / "base")
    save_quietly(peft_model("mixtral", None, 1, r=2, target_modules=["q_proj"]), tmp_path / "lora")
    weights = tmp_path / "lora/adapter_model.safetensors"
    expert = "model.layers.0.block_sparse_moe.experts.1.w1"
    shape = load_file(tmp_path / "base/model.safetensors")[f"{expert}.weight"].shape
    own = {"lora_A": torch.randn(2, shape[1]), "lora_B": torch.randn(shape[0], 2)}
    own = {f"base_model.model.{expert}.{part}.weight": value for part, value in own.items()}
    save_file(load_file(weights) | own, weights, {"format": "pt"})
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    config["target_modules"] += ["w1"]
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(config))
    data = [{"input_ids": torch.arange(5, 25).view(2, 10)}]
    state = submerge.Continual.begin(tmp_path / "state", tmp_path / "base")
    with pytest.raises(submerge.RequestError, match=rf"changes {expert}, which MixtralModel holds packed"):
        state.add("law", tmp_path / "lora", data)
    mean = submerge.Continual.begin(tmp_path / "mean", tmp_path / "base", statistics="identity")
    mean.add("law", tmp_path / "lora")
    mean.export(tmp_path / "out")
    assert any(expert in name for name in load_file(tmp_path / "out/adapter_model.safetensors"))
    MODELS["mixtral"](t).save_pretrained(tmp_path / "packed", save_original_format=False)
    packed = submerge.Continual.begin(tmp_path / "other", tmp_path / "packed", statistics="identity")
    with pytest.raises(submerge.RequestError, match=r"single experts, which the base packs: .*gate_up_proj"):
        packed.add("law", tmp_path / "lora")


def test_inputs_that_are_all_padding(grown: submerge.Continual, made: Tasks) -> None:
    ids = torch.ones(2, 5, dtype=torch.long)
    inputs = [{"input_ids": ids, "attention_mask": torch.zeros_like(ids)}]
    with pytest.raises(submerge.RequestError, match="no input of 'chess' reaches a linear map"):
        grown.add("chess", made.of("chess")[1], inputs)
    assert grown.tasks == ("law",)


def test_tokens_that_the_model_does_not_know(grown: submerge.Continual, made: Tasks) -> None:
    with pytest.raises(submerge.RequestError, match="look whether the tokenizer is the model's own"):
        grown.add("chess", made.of("chess")[1], [{"input_ids": torch.full((2, 5), 9999)}])
    assert grown.tasks == ("law",)


@pytest.mark.parametrize("keep", ["full", "none"])
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_map_that_no_input_reaches(made: Tasks, tmp_path: Path, keep: str, kind: str) -> None:
    """As an expert to which no token is sent."""

    def moments(unreached: str, kind: str = "full") -> MeasuredTask:
        names = {f"model.layers.{layer}.{m}": f"model.layers.{layer}.{m}" for layer in (0, 1) for m in MAPS}
        rows = {name: 0 if name == unreached else 20 for name in names}
        inputs = {name: torch.randn(rows[name], 16).double() for name in names}
        made_of = TriangleMoment.of if kind == "full" else partial(BlockMoment.of, block=1)
        drawn = ((name, made_of(own)) for name, own in inputs.items())
        return MeasuredTask(names, drawn, 4, "some")

    state = submerge.Continual.begin(tmp_path / "state", made.base, keep=keep, statistics=kind)
    name = "model.layers.1.mlp.up_proj"
    (warning,) = state.add("chess", made.of("chess")[1], moments(name, kind))
    assert f"no input reaches {name}, so that the task has no say there" in warning
    with pytest.raises(submerge.WorkError, match=rf"{name}: no task has inputs here — remove one of chess"):
        state.export(tmp_path / "out")
    state.add("again", made.of("chess")[1], moments("", kind))
    assert state.export(tmp_path / "out").tasks == ("again", "chess")


def test_a_single_batch_is_no_list_of_them(grown: submerge.Continual, made: Tasks) -> None:
    with pytest.raises(submerge.RequestError, match=r"is one batch, and not several — .*\[batch\]"):
        grown.add("chess", made.of("chess")[1], {"input_ids": torch.ones(2, 5, dtype=torch.long)})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"samples": 0}, "--samples: 0 is no whole number from 1"),
        ({"samples": -1}, "--samples: -1 is no whole number from 1"),
        ({"batch_size": 0}, "--batch-size: 0 is no whole number from 1"),
        ({"max_length": "9"}, "--max-length: '9' is no whole number from 1"),
        ({"prototypes": 0}, "--prototypes: 0 is no whole number from 1"),
        ({"device": "gpu"}, "--device: no such device: gpu"),
    ],
)
def test_ways_to_run_inputs(
    grown: submerge.Continual, made: Tasks, options: dict[str, Any], why: str
) -> None:
    task, model, data = made.of("chess")
    with pytest.raises(submerge.RequestError) as caught:
        grown.add(task, model, data, **options)
    assert why in str(caught.value)
    assert grown.tasks == ("law",)


def test_a_task_is_named_by_words(grown: submerge.Continual, made: Tasks) -> None:
    with pytest.raises(submerge.RequestError, match="task: takes text, and not 3"):
        grown.add(3, *made.of("chess")[1:])  # type: ignore[arg-type]


def test_a_batch_whose_rows_are_not_its_inputs(grown: submerge.Continual, made: Tasks) -> None:
    """The images of a batch need not be as many as its texts."""
    batch = {"input_ids": torch.ones(4, 5, dtype=torch.long), "pixel_values": torch.ones(3, 3, 8, 8)}
    with pytest.raises(submerge.RequestError, match=r"2 of a batch's 4 inputs .* pixel_values has not a row"):
        grown.add("chess", made.of("chess")[1], [batch], samples=2)


# --- outputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["adapter", "checkpoint"])
@pytest.mark.parametrize("out", ["state", "state/tasks", "."])
@pytest.mark.parametrize("keep", ["full", "none"])
def test_an_export_does_not_replace_the_state(
    made: Tasks, tmp_path: Path, form: str, out: str, keep: str
) -> None:
    found = submerge.Continual.begin(tmp_path / "state", made.base, keep=keep)
    found.add(*made.of("law"))
    found.export(tmp_path / "lora")  # an adapter, whose folder has the state in it
    shutil.copytree(tmp_path / "lora", tmp_path, dirs_exist_ok=True)
    with pytest.raises(submerge.RequestError, match="would take the place of the state"):
        found.export(tmp_path / out, form=form, overwrite=True)
    assert found.export(tmp_path / "state" / "lora").tasks == ("law",)


def test_outputs_that_cannot_be(grown: submerge.Continual, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for form in ("adapter", "checkpoint"):
        for out in ("circle", "x" * 300):
            with pytest.raises(submerge.SubmergeError, match="cannot be"):
                grown.export(tmp_path / out, form=form)


def test_what_no_export_wrote_stays(grown: submerge.Continual, tmp_path: Path) -> None:
    own = tmp_path / "out.incomplete" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(submerge.RequestError, match="that no export wrote"):
        grown.export(tmp_path / "out")
    assert own.read_text() == "mine"


@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_that_are_none(grown: submerge.Continual, tmp_path: Path, rank: Any) -> None:
    with pytest.raises(submerge.RequestError, match=f"--rank: {rank} is no whole number from 1"):
        grown.export(tmp_path / "out", rank=rank)


@pytest.mark.parametrize("wrong", [{"score": "cosine"}, {"key": "images"}, {"top": 0}, {"temperature": -1}])
def test_settings_of_a_gate_are_checked_without_one(
    grown: submerge.Continual, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(submerge.RequestError, match=f"{next(iter(wrong))} is .*, and must be"):
        grown.export(tmp_path / "out", **wrong)


def test_a_merge_of_nothing(grown: submerge.Continual, made: Tasks, tmp_path: Path) -> None:
    """Is no adapter, and the base as a checkpoint."""
    with pytest.raises(submerge.WorkError, match=r"^every merged update of law is zero — look at"):
        grown.export(tmp_path / "out", scale=0)
    grown.export(tmp_path / "out", form="checkpoint", scale=0, settings=ROOM)
    base, found = (load_file(Path(folder) / "model.safetensors") for folder in (made.base, tmp_path / "out"))
    assert base.keys() == found.keys()
    assert all(torch.equal(base[name], found[name]) for name in base)


def test_an_adapter_is_no_base(made: Tasks, tmp_path: Path) -> None:
    with pytest.raises(submerge.RequestError, match="name the model that it was trained on"):
        submerge.Continual.begin(tmp_path / "state", made.of("law")[1])


def test_the_command_that_begins_a_state_can_be_copied(tmp_path: Path) -> None:
    with pytest.raises(submerge.RequestError, match=r"-o '.*/my state'"):
        submerge.Continual(tmp_path / "my state")
