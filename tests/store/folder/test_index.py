"""The index of a sharded checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from store.helpers_store import (
    raw,
    read_all,
    refused,
    write_index,
    write_sharded,
)
from submerge.store import open_checkpoint


@pytest.mark.parametrize(
    "trick",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/../../model.safetensors",
        "a//b.safetensors",
        "./a.safetensors",
        "..",
        "",
        "C:x.safetensors",
        "a\\b.safetensors",
    ],
)
def test_path_tricks_in_an_index(tmp_path: Path, trick: str) -> None:
    write_sharded(tmp_path / "m")
    save_file({"model.norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    write_index(tmp_path / "m", {"model.norm.weight": trick})
    text = refused(tmp_path / "m")
    assert "path trick" in text
    assert "index.json" in text


def _in_subfolder(folder: Path) -> dict[str, torch.Tensor]:
    """Write a sharded checkpoint whose second shard lies in `weights`."""
    made = write_sharded(folder)
    index = folder / "model.safetensors.index.json"
    second = "model-00002-of-00002.safetensors"
    (folder / "weights").mkdir()
    (folder / second).rename(folder / "weights" / second)
    weight_map = json.loads(index.read_text())["weight_map"]
    write_index(folder, {k: f"weights/{f}" if f == second else f for k, f in weight_map.items()})
    return made


def test_shards_in_a_subfolder_are_read_and_not_copied(tmp_path: Path) -> None:
    made = _in_subfolder(tmp_path / "m")
    save_file({"linear.weight": torch.ones(2)}, tmp_path / "m" / "weights" / "other.safetensors")
    found = open_checkpoint(str(tmp_path / "m"), root=tmp_path)
    assert read_all(found) == raw(made)
    assert [path.as_posix() for path in found.other_weights] == ["weights/other.safetensors"]
    assert found.own_files[1].parent.name == "weights"


def test_a_subfolder_that_leads_away_is_refused(tmp_path: Path) -> None:
    _in_subfolder(tmp_path / "m")
    (tmp_path / "m" / "weights").rename(tmp_path / "elsewhere")
    (tmp_path / "m" / "weights").symlink_to(tmp_path / "elsewhere")
    assert "path trick" in refused(tmp_path / "m")


def test_broken_indices(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content, text in (
        ("{", "not valid JSON"),
        ("[]", "an object is expected"),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": 3}}', "no file name for a"),
        ('{"weight_map": {"a": "config.json"}}', "no .safetensors file"),
    ):
        index.write_text(content)
        assert text in refused(tmp_path)


def test_index_and_shards_must_agree_and_everything_is_said(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    first = "model-00001-of-00002.safetensors"
    index = {
        "model.embed_tokens.weight": first,
        "ghost": first,
        "gone.weight": "model-00009-of-00009.safetensors",
    }
    write_index(tmp_path, index)
    (tmp_path / "config.json").write_text("{")
    text = refused(tmp_path)
    assert "config.json: is not valid JSON" in text
    assert "ghost" in text
    assert "model.layers.0.mlp.weight" in text
    assert "model-00009-of-00009.safetensors, which the index names, is missing" in text
