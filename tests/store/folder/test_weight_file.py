"""Which files of a folder are its weights, and what folders without any are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from store.helpers_store import (
    refused,
    tensors,
    write_sharded,
    write_single,
)
from submerge.store import open_checkpoint


def test_which_file_wins(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({"only": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(open_checkpoint(str(tmp_path)).tensors) == {"only"}
    (tmp_path / "model.safetensors").unlink()
    save_file({"stale": torch.ones(1)}, tmp_path / "model-00003-of-00003.safetensors")
    save_file({"stale": torch.ones(1)}, tmp_path / "consolidated.safetensors")
    assert set(open_checkpoint(str(tmp_path)).tensors) == set(tensors())
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / "model.safetensors.index.fp16.json")
    assert set(open_checkpoint(str(tmp_path)).tensors) == set(tensors())


def test_ambiguous_folders(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "two.safetensors")
    assert "several weight files" in refused(tmp_path)
    write_sharded(tmp_path / "pieces")
    (tmp_path / "pieces" / "model.safetensors.index.json").unlink()
    assert "index" in refused(tmp_path / "pieces")


def test_empty_folders_say_what_they_hold(tmp_path: Path) -> None:
    assert "it is empty" in refused(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "it holds notes.txt" in refused(tmp_path)
    write_single(tmp_path / "unet")
    assert "subfolders do (unet)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["x.Q4.gguf"], "GGUF"),
        (["tf_model.h5"], "TensorFlow or Flax"),
        (["flax_model.msgpack"], "TensorFlow or Flax"),
        (["model.onnx"], "ONNX"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "holds an adapter where a whole model is expected",
        ),
        (["adapter_config.json", "adapter_model.bin"], "holds an adapter where a whole model is expected"),
        (["pytorch_model.bin"], "--allow-pickle"),
        (["pytorch_model.bin.index.json"], "--allow-pickle"),
        (["weights.pt", "optimizer.pt", "training_args.bin"], "--allow-pickle"),
        (["optimizer.pt", "training_args.bin"], "no weights found"),
    ],
)
def test_folders_of_other_formats(tmp_path: Path, files: list[str], text: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert text in refused(tmp_path)


def test_files_of_other_formats(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(50))
    assert "GGUF" in refused(tmp_path / "x.gguf")
    (tmp_path / "x.bin").touch()
    assert "--allow-pickle" in refused(tmp_path / "x.bin")
    write_single(tmp_path / "m")
    assert "not a weight file" in refused(tmp_path / "m" / "config.json")
    save_file({}, tmp_path / "none.safetensors")
    assert "no tensors" in refused(tmp_path / "none.safetensors")
