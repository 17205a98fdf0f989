"""What `submerge.load` refuses: settings, folders, banks, architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _cli import cli
from _mass_tasks import Served
from _models import ROOM
from submerge.serving import MassController

pytest.importorskip("transformers")


def refusal(call: Any, *parts: str) -> None:
    with pytest.raises(submerge.RequestError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), caught.value


def damaged(folder: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    return copied


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


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@torch.no_grad()
def test_heads_and_updates_have_the_dtype_of_the_model(bert: Served, dtype: str) -> None:
    """Heads are stored in that of their task, and all of them answer at once; updates in that of the bank."""
    out, ids = bert.merged("default"), torch.randint(5, 20, (2, 6))
    model = submerge.load(out, dtype=dtype)
    task = model.controller.router.names[0]
    found, wanted = (m(input_ids=ids, task=task).logits for m in (model, submerge.load(out)))
    assert found.dtype == getattr(torch, dtype)
    updates = [u for m in model.controller.gated.modules.values() for u in m.updates.values()]
    assert {x.dtype for update in updates for x in update.buffers()} == {found.dtype}
    finite = wanted.isfinite()
    assert (found.float() - wanted)[finite].abs().max() < 0.05 * wanted[finite].abs().max()


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


def test_a_gate_of_another_package_is_found(
    bert: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = damaged(bert.merged("default"), tmp_path)
    manifest = json.loads((out / "submerge.json").read_text())
    manifest["gate"]["method"] = "elsewhere"
    (out / "submerge.json").write_text(json.dumps(manifest))
    refusal(lambda: submerge.load(out), "the gate of elsewhere is not known", "install the package")
    info = tmp_path / "submerge_test_gate-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: submerge-test-gate\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[submerge.gates]\nelsewhere = submerge.serving:MassController\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(submerge.load(out).controller, MassController)


def test_heads_of_several_kinds_are_told(bert: Served) -> None:
    out = bert.root / "kinds"
    shutil.copytree(bert.merged("default"), out)
    manifest = json.loads((out / "submerge.json").read_text())
    manifest["gate"]["tasks"][1]["architectures"] = ["BertForTokenClassification"]
    (out / "submerge.json").write_text(json.dumps(manifest))
    refusal(lambda: submerge.load(out), "not of one architecture", "task1: BertForTokenClassification")
    submerge.load(out, architecture="BertForSequenceClassification")
    refusal(lambda: submerge.load(out, architecture="Nothing"), "no architecture 'Nothing'")
