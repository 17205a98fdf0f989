"""`submerge.json`: what is read is what was written, byte for byte; and damaged files are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _models import ROOM, TEXT, contents, family, perturbed, quiet_transformers, state, write
from submerge.errors import RequestError
from submerge.store import DIGEST, MANIFEST, GateRecord, Manifest, ModelRecord, TensorRecord, file_digest


def checkpoint(root: Path) -> Path:
    """Models with values that are NaN, with a tensor that has no place, and with a block for each part."""
    models = family(root, tokens={"a": 0, "b": 41})
    tensors = load_file(models.tuned[0] / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file({**tensors, "more.weight": torch.ones(3)}, models.tuned[0] / "model.safetensors")
    recipe = models.recipe("ties", {"density": 0.5})
    settings = dataclasses.replace(ROOM, allow_nonfinite=True)
    return submerge.merge(recipe, root / "out", settings=settings).out


def copies(root: Path) -> Path:
    """Tensors that are whole numbers, of which a copy is made though the models' differ."""
    base = {**state(), "positions": torch.arange(4)}
    tuned = {**perturbed(state(), 1), "positions": torch.arange(4) + 1}
    models = [{"model": str(write(root / "tuned", tuned)), "parameters": {"weight": 0.5}}]
    base_model = str(write(root / "base", base))
    recipe = {"merge_method": "task_arithmetic", "base_model": base_model, "models": models}
    return submerge.merge(recipe, root / "out", settings=ROOM).out


def matrices(root: Path) -> Path:
    return submerge.merge(family(root, 3).recipe("ssam"), root / "out", settings=ROOM).out


def adapter(root: Path) -> Path:
    peft = pytest.importorskip("peft")
    t = quiet_transformers()
    torch.manual_seed(0)
    t.LlamaForCausalLM(t.LlamaConfig(**TEXT)).save_pretrained(root / "base")
    for number in range(2):
        base = t.LlamaForCausalLM.from_pretrained(root / "base")
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        for name, values in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(values, std=0.1)
        adapted.save_pretrained(str(root / f"a{number}"))
    models = [{"model": str(root / f"a{number}"), "parameters": {"weight": 0.5}} for number in range(2)]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(root / "base"),
        "models": models,
        "output": {"as": "adapter"},
    }
    return submerge.merge(recipe, root / "out", settings=ROOM).out


def gate(root: Path) -> Path:
    """A method with a gate, whose tasks have heads."""
    models = family(root)
    heads = [{"head": "lm_head.weight", "name": name} for name in ("first", "second")]
    listed = [{"model": str(path), **head} for path, head in zip(models.tuned, heads, strict=True)]
    recipe = {"merge_method": "mass", "base_model": str(models.base), "models": listed}
    return submerge.merge(recipe, root / "out", settings=ROOM).out


@pytest.mark.parametrize("merged", [checkpoint, copies, matrices, adapter, gate])
def test_what_is_read_is_what_was_written(merged: Callable[[Path], Path], tmp_path: Path) -> None:
    out = merged(tmp_path)
    written = contents(out)[MANIFEST]
    manifest = Manifest.read(out)
    assert manifest.text.encode() == written
    content = json.loads(written)
    assert manifest.to_json() == content
    assert manifest.recipe == content["recipe"]
    assert manifest.base == content["recipe"]["base_model"]
    assert manifest.is_adapter == (merged is adapter)
    assert (manifest.gate is None) == (manifest.bank is None) == (merged is not gate)
    assert (manifest.modules is None) == (merged is not adapter)


def test_a_checkpoint(tmp_path: Path) -> None:
    manifest = Manifest.read(checkpoint(tmp_path))
    assert manifest.version == submerge.__version__
    base, one, other = manifest.models
    assert base.used is None
    assert (one.used, one.unused) == (other.used, ["more.weight"]) == (9, ["more.weight"])
    assert one.files == {"model.safetensors": (tmp_path / "tuned0" / "model.safetensors").stat().st_size}
    assert one.read["tensors"] == 9
    assert list(manifest.nonfinite) == ["lm_head.weight"]
    assert "b" in manifest.beyond_rows
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, record in manifest.tensors.items():
        assert (record.file, record.treatment, record.dtype) == ("model.safetensors", "merge", "F32")
        assert record.shape == tuple(written[name].shape)


def test_copies_whose_models_differ(tmp_path: Path) -> None:
    manifest = Manifest.read(copies(tmp_path))
    assert manifest.differs == {"positions": [str(tmp_path / "tuned")]}
    assert manifest.tensors["positions"].treatment != "merge"
    assert manifest.tensors["positions"].note


def test_figures_of_matrices(tmp_path: Path) -> None:
    manifest = Manifest.read(matrices(tmp_path))
    kept = manifest.figures("kept")
    assert kept
    assert kept == {
        name: record.figures["kept"] for name, record in manifest.tensors.items() if record.figures
    }
    assert manifest.figures("nothing of the kind") == {}


def test_an_adapter(tmp_path: Path) -> None:
    manifest = Manifest.read(adapter(tmp_path))
    assert {record.file for record in manifest.tensors.values()} == {"adapter_model.safetensors"}
    assert manifest.modules
    for number, record in enumerate(manifest.models[-2:]):
        assert record.adapter is not None
        file = tmp_path / f"a{number}" / "adapter_model.safetensors"
        assert record.adapter[DIGEST] == file_digest(file)


def test_a_gate(tmp_path: Path) -> None:
    manifest = Manifest.read(gate(tmp_path))
    assert manifest.gate is not None
    assert manifest.gate.method == "mass"
    assert [task["name"] for task in manifest.gate.tasks] == ["first", "second"]
    assert manifest.gate.tasks[0]["head"] == ["lm_head.weight"]
    assert "routing_layers" in manifest.gate.settings
    assert manifest.bank is not None
    tensors = load_file(tmp_path / "out" / "bank.safetensors")
    assert {name: record.shape for name, record in manifest.bank.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


def test_a_record_says_nothing_of_what_is_empty() -> None:
    digest = 32 * "0"
    assert TensorRecord("F32", (), digest).to_json() == {"dtype": "F32", "shape": [], DIGEST: digest}
    full = TensorRecord("F32", (2,), digest, "a", "merge", 8, "why", True, {"rank": 1})
    assert list(full.to_json()) == [
        "file", "treatment", "dtype", "shape", DIGEST, "block", "note", "new", "figures",
    ]  # fmt: skip
    assert TensorRecord.from_json(full.to_json()) == full
    nothing = {"model": "a", "files": {}, "read": {"tensors": 0, DIGEST: ""}}
    assert ModelRecord("a").to_json() == nothing
    assert ModelRecord("a", used=0).to_json() == {**nothing, "used": 0}


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no recipe": lambda content: content.pop("recipe"),
    "a recipe that is none": lambda content: content.update(recipe=[]),
    "no tensors": lambda content: content.pop("tensors"),
    "tensors that are none": lambda content: content.update(tensors=[1]),
    "a tensor without a digest": lambda content: _first(content).pop(DIGEST),
    "a digest that is short": lambda content: _first(content).update({DIGEST: "12"}),
    "an unknown number format": lambda content: _first(content).update(dtype="F31"),
    "a shape that is none": lambda content: _first(content).update(shape="2"),
    "blocks without bytes": lambda content: _first(content).update(block=0),
    "tokens that are none": lambda content: content.update(beyond_rows=1),
    "a gate without tasks": lambda content: content["gate"].update(tasks=[]),
    "a task without a name": lambda content: content["gate"]["tasks"][0].pop("name"),
    "a gate without settings": lambda content: content["gate"].pop("settings"),
    "no bank": lambda content: content.pop("bank"),
    "a bank without shapes": lambda content: content["bank"].update(tensors={"a": {}}),
}


def _first(content: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = next(iter(content["tensors"].values()))
    return line


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gate(tmp_path_factory.mktemp("gated"))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told(damage: Callable[[dict[str, Any]], Any], gated: Path, tmp_path: Path) -> None:
    content = json.loads((gated / MANIFEST).read_text())
    damage(content)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(RequestError) as error:
        Manifest.read(tmp_path)
    assert str(error.value) == f"{tmp_path / MANIFEST}: the file is damaged — merge again"


@pytest.mark.parametrize("models", [None, 3, "x", [], [None], [{"model": 1}]])
def test_models_that_make_no_sense_are_left_out(models: Any, gated: Path, tmp_path: Path) -> None:
    content = json.loads((gated / MANIFEST).read_text())
    content["models"] = models
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    assert list(Manifest.read(tmp_path).models) == []


def test_figures_that_are_damaged_are_told_where_they_are_read(gated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(gated, out)
    content = json.loads((out / MANIFEST).read_text())
    _first(content)["figures"] = {"energy": "most"}
    (out / MANIFEST).write_text(json.dumps(content))
    Manifest.read(out)
    with pytest.raises(RequestError, match="the file is damaged"):
        submerge.load(out)


def test_a_folder_that_no_merge_wrote(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        Manifest.read(tmp_path)
    hint = "name a folder that `submerge merge` made"
    assert str(error.value) == f"{tmp_path}: there is no submerge.json (No such file or directory) — {hint}"
    for text in ("{", "[]", "\0\xff"):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(RequestError, match="the file is damaged"):
            Manifest.read(tmp_path)


def test_a_gate_keeps_what_is_added_to_its_tasks() -> None:
    line = {
        "method": "mass",
        "tasks": [{"name": "a", "id2label": {"0": "x"}}],
        "settings": {"select": "top1"},
    }
    assert GateRecord.from_json(line).to_json() == line
