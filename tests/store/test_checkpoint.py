from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from store.helpers_store import (
    raw,
    read_all,
    refused,
    write_sharded,
    write_single,
)
from submerge.errors import RequestError
from submerge.store import open_checkpoint


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_folders(tmp_path: Path, write: Callable[[Path], dict[str, torch.Tensor]]) -> None:
    made = write(tmp_path / "m")
    found = open_checkpoint("m", root=tmp_path)
    assert read_all(found) == raw(made)
    assert (found.label, found.path, found.revision) == ("m", tmp_path / "m", None)
    assert found.config == {"model_type": "llama"}
    assert found.side_files == (Path("config.json"),)
    assert set(found.shards) == set(made)
    assert all((found.path / file).is_file() for file in found.shards.values())
    assert not found.memory


def test_the_last_of_several_shards_has_a_tensor(tmp_path: Path) -> None:
    """As in repositories that correct tensors by a file of their own, which the index names."""
    write_sharded(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    for overlay, is_read in (("model-overlay.safetensors", True), ("model-00000.safetensors", False)):
        save_file({name: torch.full((2,), 7.0)}, tmp_path / overlay)
        index["weight_map"][name] = overlay
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        if is_read:
            model = open_checkpoint(str(tmp_path))
            assert model.tensors[name].shape == (2,)
            assert model.shards[name] == overlay
        else:
            with pytest.raises(RequestError, match="does not place there"):
                open_checkpoint(str(tmp_path))


def test_the_current_folder_is_the_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_single(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("m").tensors
    assert open_checkpoint("./m/").tensors
    assert open_checkpoint(str(tmp_path / "m")).tensors


def test_bare_files_and_odd_names(tmp_path: Path) -> None:
    made = write_single(tmp_path / "a@b+c")
    assert read_all(open_checkpoint("a@b+c", root=tmp_path)) == raw(made)
    bare = open_checkpoint("a@b+c/model.safetensors", root=tmp_path)
    assert read_all(bare) == raw(made)
    assert bare.config is None
    assert bare.side_files == ()
    write_single(tmp_path / "org" / "name@v1")
    assert open_checkpoint("org/name@v1", root=tmp_path).revision is None


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors",
        "weights.safetensors",
        "consolidated.safetensors",
    ],
)
def test_other_names_of_one_file(tmp_path: Path, name: str) -> None:
    write_single(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    assert set(open_checkpoint(str(tmp_path)).shards.values()) == {name}


def test_damage_in_several_shards_is_said_together(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-2])
    text = refused(tmp_path)
    assert "model-00001-of-00002.safetensors" in text
    assert "model-00002-of-00002.safetensors" in text
    assert "truncated" in text


def test_missing_folders(tmp_path: Path) -> None:
    write_single(tmp_path / "llama-tuned")
    assert "did you mean 'llama-tuned'?" in refused("llama-tunde", root=tmp_path)
    assert "no such file or folder" in refused(tmp_path / "deep" / "er")
    assert "empty" in refused("", root=tmp_path)
    assert "no such" in refused("a\0b", root=tmp_path)
    assert "no such" in refused("x" * 5000, root=tmp_path)
    assert "no revisions" in refused("llama-tuned@main", root=tmp_path)
    assert "no such" in refused("./models@v2/foo", root=tmp_path)
    assert "is not a revision" in refused("org/name@../../x", root=tmp_path)


def test_importing_is_light() -> None:
    code = "import sys, submerge.store; print({'huggingface_hub', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
