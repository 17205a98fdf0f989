from __future__ import annotations

import os
from pathlib import Path

import pytest

from store.helpers_store import write_single
from submerge.errors import RequestError
from submerge.store import left_out, open_checkpoint

CARRIED = [
    "1_Pooling/config.json",
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "mel_filters.npz",
    "modeling_custom.py",
    "modules.json",
    "preprocessor_config.json",
    "spk_dict.pt",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
]
LEFT = [
    ".gitattributes",
    ".git/config",
    ".cache/huggingface/x.json",
    "README.md",
    "adapter_config.json",
    "bank.safetensors",
    "checkpoint-500/config.json",
    "flax_model.msgpack",
    "mergekit_config.yml",
    "mergekit_moe_config.yml",
    "model.gguf",
    "model.safetensors.index.json",
    "model.safetensors.index.fp16.json",
    "onnx/config.json",
    "optimizer.pt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rng_state_0.pth",
    "runs/events.out.tfevents.1",
    "scheduler.pt",
    "submerge.json",
    "tf_model.h5",
    "trainer_state.json",
    "training_args.bin",
    "weights.npz",
]


def test_what_is_carried(tmp_path: Path) -> None:
    write_single(tmp_path)
    for name in CARRIED + LEFT:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != "config.json":
            path.touch()
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").touch()
    os.mkfifo(tmp_path / "pipe.txt")
    found = open_checkpoint(str(tmp_path))
    assert [str(path) for path in found.side_files] == CARRIED
    assert found.other_weights == (Path("2_Dense/model.safetensors"),)


def test_links_inside_the_folder(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").touch()
    (tmp_path / "b.txt").symlink_to("sub/a.txt")
    (tmp_path / "again").symlink_to("sub")
    (tmp_path / "loop").symlink_to(".")
    found = open_checkpoint(str(tmp_path))
    assert [str(path) for path in found.side_files] == ["b.txt", "config.json", "sub/a.txt"]


def test_a_linked_folder_is_a_folder(tmp_path: Path) -> None:
    write_single(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert open_checkpoint("link", root=tmp_path).side_files == (Path("config.json"),)


def test_links_to_elsewhere_are_not_carried(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "id_rsa").write_text("private")
    model = tmp_path / "model"
    write_single(model)
    (model / "notes.txt").symlink_to(secret / "id_rsa")
    (model / "folder").symlink_to(secret)
    (model / "dangling.json").symlink_to("nothing")
    (model / "self.json").symlink_to("self.json")
    found = open_checkpoint(str(model))
    assert [str(path) for path in found.side_files] == ["config.json"]
    assert sorted(map(str, found.links)) == ["dangling.json", "folder", "notes.txt", "self.json"]
    text = "\n".join(map(str, found.links.values()))
    assert "notes.txt: is a link to" in text
    assert "folder: is a link to" in text
    assert "dangling.json: is a link that leads nowhere" in text
    assert "self.json: is a link that leads nowhere" in text


def test_weights_may_be_links(tmp_path: Path) -> None:
    write_single(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.safetensors").symlink_to(tmp_path / "a" / "model.safetensors")
    assert open_checkpoint("b", root=tmp_path).tensors
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"model\.safetensors is a link that leads nowhere"):
        open_checkpoint("b", root=tmp_path)


def test_weights_of_something_else_are_told(tmp_path: Path) -> None:
    write_single(tmp_path)
    told = ["2_Dense/pytorch_model.bin", "mm_projector.bin", "open_clip_model.safetensors", "voices/a.pt"]
    for name in (*CARRIED, *LEFT, *told, "model.fp16.safetensors", "3_Dense/model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != "config.json":
            path.touch()
    (tmp_path / "3_Dense" / "pytorch_model.bin").touch()
    read = [tmp_path / "model.safetensors"]
    assert [str(path) for path in left_out(tmp_path, read)] == told
