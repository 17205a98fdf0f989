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
    messages,
    raw_file,
    record,
    tensors,
    write_index,
    write_sharded,
    write_single,
)
from submerge.errors import RequestError
from submerge.store import Checkpoint, FileTable, open_checkpoint, tied_embeddings


def refused(spec: object, **options: object) -> str:
    with pytest.raises(RequestError) as caught:
        open_checkpoint(str(spec), **options)  # type: ignore[arg-type]
    return messages(caught.value)


def read_all(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    found = {}
    with FileTable() as table:
        for name, entry in checkpoint.tensors.items():
            buffer = bytearray(entry.nbytes)
            checkpoint.source(name, table).read(0, entry.numel, memoryview(buffer))
            found[name] = bytes(buffer)
    return found  # type: ignore[return-value]


def raw(made: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in made.items()
    }


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


def test_quantised_models(tmp_path: Path) -> None:
    write_single(tmp_path / "c", config={"quantization_config": {"quant_method": "gptq"}})
    assert "quantised (gptq)" in refused(tmp_path / "c")
    write_single(tmp_path / "t", config={"text_config": {"quantization_config": {"bits": 4}}})
    assert "quantised" in refused(tmp_path / "t")
    write_single(tmp_path / "ok", config={"quantization_config": None})
    assert open_checkpoint(str(tmp_path / "ok")).tensors
    for number, made in enumerate(
        (
            {"a.qweight": torch.ones(2, dtype=torch.int32)},
            {"a.weight.absmax": torch.ones(2)},
            {"a.weight.quant_state.bitsandbytes__nf4": torch.ones(2, dtype=torch.uint8)},
            {"a.SCB": torch.ones(2)},
            {"a.weight": torch.ones(2).to(torch.float8_e4m3fn)},
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file(made, path)
        text = refused(path)
        assert "quantised" in text
        assert next(iter(made)) in text
    save_file({"freqs": torch.ones(2, dtype=torch.complex64)}, tmp_path / "z.safetensors")
    assert "complex tensors of type C64" in refused(tmp_path / "z.safetensors")
    assert "quantised" in refused(raw_file(tmp_path / "f4", {"a": record("F4", [4], [0, 2])}, bytes(2)))


def test_tied_embeddings() -> None:
    assert tied_embeddings({"tie_word_embeddings": True})
    assert tied_embeddings({"text_config": {"tie_word_embeddings": True}})
    assert not tied_embeddings({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}})
    assert not tied_embeddings({})
    assert not tied_embeddings(None)


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


def test_importing_is_light() -> None:
    code = "import sys, submerge.store; print({'huggingface_hub', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_config_json_must_be_sound(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff")
    assert "config.json: is not valid JSON" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    assert "an object is expected" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "config.json" in refused(tmp_path)
