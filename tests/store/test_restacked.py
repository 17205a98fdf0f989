"""Tensors of models under other names."""

from __future__ import annotations

from pathlib import Path

import torch

from _models import SMALL, state, write
from submerge.store import Checkpoint, FileTable, Restacker, open_checkpoint
from submerge.store.adapter import Adapter, Add

NAMES = {
    "model.norm.weight": "model.norm.weight",
    "model.layers.0.norm.weight": "model.layers.1.norm.weight",
    "model.layers.1.norm.weight": "model.layers.0.norm.weight",
    "model.layers.2.norm.weight": "model.layers.1.norm.weight",
}


def values(model: Checkpoint, name: str) -> torch.Tensor:
    out = torch.empty(model.tensors[name].shape)
    with FileTable() as table:
        model.source(name, table).read(0, out.numel(), memoryview(out.numpy()).cast("B"))
    return out


def test_a_tensor_may_have_several_names(tmp_path: Path) -> None:
    tensors = state()
    model = open_checkpoint(str(write(tmp_path / "m", tensors)))
    restacked = Restacker().model(model, NAMES)
    assert list(restacked.tensors) == list(NAMES)
    for new, old in NAMES.items():
        assert torch.equal(values(restacked, new), tensors[old])
        assert restacked.stored_as(new) == old
        assert restacked.tensors[new].name == new
    assert restacked.files == model.files
    again = Restacker().model(restacked, {"a.weight": "model.layers.2.norm.weight"})
    assert torch.equal(values(again, "a.weight"), tensors["model.layers.1.norm.weight"])


def test_a_model_whose_names_stay_is_the_same(tmp_path: Path) -> None:
    model = open_checkpoint(str(write(tmp_path / "m", state())))
    assert Restacker().model(model, {name: name for name in SMALL}) is model


def test_an_adapter_goes_with_the_tensors_and_these_are_still_those_of_its_base(tmp_path: Path) -> None:
    base = open_checkpoint(str(write(tmp_path / "m", state())))
    old = "model.layers.1.norm.weight"
    part = Add(base.tensors[old], 1.0)
    adapter = Adapter("a", tmp_path, None, {}, None, None, {old: part}, names={old: "own"})
    adapted = Checkpoint("m+a", base.path, None, base.tensors, base.shards, adapter=adapter, under=base)
    restacker = Restacker()
    of_base, of_adapted = restacker.model(base, NAMES), restacker.model(adapted, NAMES)
    assert all(of_base.tensors[name] is of_adapted.tensors[name] for name in NAMES)
    assert of_adapted.adapter is not None
    twice = ["model.layers.0.norm.weight", "model.layers.2.norm.weight"]
    assert of_adapted.adapter.parts == dict.fromkeys(twice, part)
    assert of_adapted.adapter.names == dict.fromkeys(twice, "own")
    assert of_adapted.under is not None
    assert list(of_adapted.under.tensors) == list(NAMES)
