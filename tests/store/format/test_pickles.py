"""Weights in pickles."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from store.helpers_store import (
    raw,
    read_all,
    refused,
    tensors,
    write_index,
)
from submerge.store import open_checkpoint


class NotATensor:
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights(tmp_path: Path, zipped: bool) -> None:
    made = tensors()
    made["tied"] = made["model.embed_tokens.weight"]
    made["view"] = made["model.layers.1.mlp.weight"].t()
    made["parameter"] = torch.nn.Parameter(torch.ones(2))
    path = tmp_path / "pytorch_model.bin"
    torch.save(made, path, _use_new_zipfile_serialization=zipped)
    found = open_checkpoint(str(tmp_path), allow_pickle=True)
    assert read_all(found) == raw({name: tensor.detach() for name, tensor in made.items()})
    assert found.side_files == ()
    assert all(entry.file is None for entry in found.tensors.values())
    assert not found.memory["parameter"].requires_grad
    assert set(open_checkpoint(str(path), allow_pickle=True).tensors) == set(made)


def test_pickled_shards_and_state_dicts(tmp_path: Path) -> None:
    made = tensors()
    names = list(made)
    weight_map = {}
    for number, group in enumerate((names[:2], names[2:])):
        torch.save({name: made[name] for name in group}, tmp_path / f"pytorch_model-{number}.bin")
        weight_map.update(dict.fromkeys(group, f"pytorch_model-{number}.bin"))
    write_index(tmp_path, weight_map, "pytorch_model.bin.index.json")
    found = open_checkpoint(str(tmp_path), allow_pickle=True)
    assert read_all(found) == raw(made)
    assert dict(found.shards) == weight_map
    torch.save({"state_dict": made, "epoch": 3}, tmp_path / "x.ckpt")
    assert set(open_checkpoint(str(tmp_path / "x.ckpt"), allow_pickle=True).tensors) == set(made)


def test_pickles_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": NotATensor()}, path)
    assert "NotATensor" in refused(path, allow_pickle=True)
    torch.save({"a": subprocess.Popen}, path)
    assert ".Popen" in refused(path, allow_pickle=True)
    torch.save({"a": torch.ones(1), "epoch": 3}, path)
    assert "epoch" in refused(path, allow_pickle=True)
    torch.save(torch.ones(1), path)
    assert "not a state dict" in refused(path, allow_pickle=True)
    torch.save({"a": torch.eye(2).to_sparse()}, path)
    assert "tensor a" in refused(path, allow_pickle=True)
    for damage in (b"", b"PK\x03\x04" + bytes(40), b"nonsense", b"\x80\x02}q\x00."):
        path.write_bytes(damage)
        assert "x.bin" in refused(path, allow_pickle=True)
