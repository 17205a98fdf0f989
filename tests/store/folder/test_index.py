"""The index of a sharded checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from store.helpers_store import (
    refused,
    write_index,
    write_sharded,
)


@pytest.mark.parametrize(
    "trick",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
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
