"""Files that are damaged, that lie, or that are something else: refused by name, before any work."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import submerge
from _cli import cli, merge, refused
from _models import ROOM, Family, contents, family, state, write


@pytest.fixture
def made(tmp_path: Path) -> Family:
    return family(tmp_path, tokens={"a": 0, "b": 1})


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header of a folder's weight file, of the same length or not."""
    data = weights(folder).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    weights(folder).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def cut(folder: Path, size: int) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:size])


def put(name: str, content: bytes | str) -> Callable[[Path], None]:
    def write_it(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write_it


def instead(name: str, content: bytes | str = b"") -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        weights(folder).unlink()
        put(name, content)(folder)

    return replace


def entry(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: header(folder, lambda table: table[name].update(changes))


def index(weight_map: Any) -> Callable[[Path], None]:
    return instead("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


def in_shards(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights(folder).unlink()
        write(folder, state(), shards=2)
        change(folder)

    return rewrite


def forget(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        table = json.loads(path.read_text())
        del table["weight_map"][name]
        path.write_text(json.dumps(table))

    return change


def as_folder(folder: Path) -> None:
    weights(folder).unlink()
    weights(folder).mkdir()


def as_pipe(folder: Path) -> None:
    weights(folder).unlink()
    os.mkfifo(weights(folder))


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def quantised(folder: Path) -> None:
    save_file(
        {"layer.weight": torch.ones(2, 2, dtype=torch.int8), "layer.SCB": torch.ones(2)}, weights(folder)
    )


def fp8(folder: Path) -> None:
    save_file({"layer.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}, weights(folder))


def complex_numbers(folder: Path) -> None:
    save_file({"layer.weight": torch.ones(2, 2, dtype=torch.complex64)}, weights(folder))


NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "truncated": (lambda f: cut(f, 9_000), ("model.safetensors", "truncated", "copy or download it again")),
    "cut in the header": (lambda f: cut(f, 100), ("truncated",)),
    "a few bytes": (lambda f: cut(f, 5), ("5 bytes",)),
    "empty file": (lambda f: cut(f, 0), ("is empty",)),
    "bytes behind": (lambda f: weights(f).write_bytes(weights(f).read_bytes() + b"xx"), ("2 bytes after",)),
    "long header": (put("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), ("declares a header",)),
    "broken header": (put("model.safetensors", struct.pack("<Q", 4) + b"{ab}"), ("not valid JSON",)),
    "text": (put("model.safetensors", "not weights at all, just some text"), ("model.safetensors",)),
    "shape lies": (entry(NORM, shape=[17]), (NORM, "needs 68 bytes")),
    "overlap": (entry(NORM, data_offsets=[0, 64]), ("overlaps the tensor before it",)),
    "negative shape": (entry(NORM, shape=[-16]), (NORM, "whole numbers")),
    "huge shape": (entry(NORM, shape=[2**40, 2**40]), (NORM, "not a possible number of bytes")),
    "unknown type": (entry(NORM, dtype="F12"), (NORM, "unknown dtype")),
    "no offsets": (lambda f: header(f, lambda t: t[NORM].pop("data_offsets")), (NORM, "fields")),
    "index leads up": (index({"a": "../base/model.safetensors"}), ("path trick", "../base")),
    "index leads away": (index({"a": "/etc/passwd"}), ("path trick", "/etc/passwd")),
    "index names a pickle": (index({"a": "weights.bin"}), ("weights.bin",)),
    "index of nothing": (index({}), ("weight_map",)),
    "index with numbers": (index({"a": 7}), ("no file name for a",)),
    "broken index": (instead("model.safetensors.index.json", "{"), ("index.json", "not valid JSON")),
    "shard gone": (
        in_shards(lambda f: (f / "model-00002-of-00002.safetensors").unlink()),
        ("model-00002-of-00002.safetensors", "is missing"),
    ),
    "index forgets": (in_shards(forget(NORM)), (NORM, "does not place there")),
    "index forgotten": (
        in_shards(lambda f: (f / "model.safetensors.index.json").unlink()),
        ("not their index", "index.json"),
    ),
    "config is broken": (put("config.json", "{"), ("config.json", "not valid JSON")),
    "config is a list": (put("config.json", "[]"), ("config.json", "list")),
    "tokenizer is broken": (put("tokenizer.json", "{'a': 1}"), ("tokenizer.json", "not valid JSON")),
    "tokenizer is odd": (put("tokenizer.json", '{"model": {"vocab": [1]}}'), ("tokenizer.json", "vocab")),
    "quantised config": (
        put("config.json", '{"quantization_config": {"quant_method": "gptq"}}'),
        ("gptq", "quantised", "dequantise"),
    ),
    "quantised tensors": (quantised, ("layer.SCB", "quantised")),
    "fp8": (fp8, ("F8_E4M3", "quantised")),
    "complex": (complex_numbers, ("complex", "layer.weight")),
    "gguf": (instead("model-q4.gguf", b"GGUF"), ("GGUF", "original checkpoint")),
    "gguf in disguise": (put("model.safetensors", b"GGUF" + bytes(100)), ("is a GGUF file",)),
    "git lfs": (
        put("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:x\n"),
        ("git lfs pull",),
    ),
    "pickle": (instead("pytorch_model.bin", b"x"), ("pickled", "--allow-pickle")),
    "adapter": (instead("adapter_model.safetensors", b"x"), ("adapter_config.json is missing", "PEFT")),
    "flax": (instead("flax_model.msgpack", b"x"), ("Flax",)),
    "no weights": (lambda f: weights(f).unlink(), ("no weights found",)),
    "no files": (empty, ("it is empty",)),
    "a folder for a file": (as_folder, ("model.safetensors",)),
    "a pipe for a file": (as_pipe, ("not a regular file",)),
    "a dead link": (
        lambda f: (weights(f).unlink(), weights(f).symlink_to("gone")),
        ("leads nowhere",),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("who", ["base", "tuned1"])
def test_refused_by_name_before_anything_is_written(
    made: Family, tmp_path: Path, fault: str, who: str
) -> None:
    damage, parts = FAULTS[fault]
    damage(tmp_path / who)
    recipe = made.write_recipe("task_arithmetic")
    before = sorted(os.listdir(tmp_path))
    refused(merge(recipe, tmp_path / "out"), tmp_path / "out", 2, str(tmp_path / who), *parts)
    planned = cli("plan", recipe)
    assert planned.code == 2
    assert planned.out == ""
    assert sorted(os.listdir(tmp_path)) == before


def test_a_link_out_is_refused_where_it_would_be_carried(made: Family, tmp_path: Path) -> None:
    recipe = made.write_recipe("task_arithmetic")
    for folder in made.tuned:  # nobody would copy theirs
        (folder / "notes.txt").symlink_to("/etc/hostname")
    assert merge(recipe, tmp_path / "fine").code == 0
    (made.base / "notes.txt").symlink_to("/etc/hostname")
    refused(merge(recipe, tmp_path / "out"), tmp_path / "out", 2, "notes.txt", "outside the model")


def test_every_fault_is_told_at_once(made: Family, tmp_path: Path) -> None:
    cut(made.base, 100)
    put("config.json", "{")(made.base)
    instead("model.gguf")(made.tuned[0])
    index({"a": "../x.safetensors"})(made.tuned[1])
    told = merge(made.write_recipe("task_arithmetic"), tmp_path / "out").err
    assert len([line for line in told.splitlines() if line.startswith("error: ")]) == 4


def test_pickles_can_be_allowed(made: Family, tmp_path: Path) -> None:
    recipe = made.write_recipe("task_arithmetic")
    assert merge(recipe, tmp_path / "wanted").code == 0
    from safetensors.torch import load_file

    tensors = load_file(weights(made.tuned[0]))
    weights(made.tuned[0]).unlink()
    torch.save(tensors, made.tuned[0] / "pytorch_model.bin")
    refused(merge(recipe, tmp_path / "out"), tmp_path / "out", 2, "--allow-pickle")
    assert merge(recipe, tmp_path / "out", "--allow-pickle").code == 0
    ours, wanted = contents(tmp_path / "out"), contents(tmp_path / "wanted")
    assert ours["model.safetensors"] == wanted["model.safetensors"]
    files = json.loads(ours["submerge.json"])["models"][1]["files"]
    assert list(files) == ["pytorch_model.bin"]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/submerge-was-here",)


def test_an_allowed_pickle_still_runs_nothing(made: Family, tmp_path: Path) -> None:
    weights(made.tuned[0]).unlink()
    torch.save({"a": Evil()}, made.tuned[0] / "pytorch_model.bin")
    result = merge(made.write_recipe("task_arithmetic"), tmp_path / "out", "--allow-pickle")
    refused(result, tmp_path / "out", 2, "only tensors are allowed")
    assert not Path("/tmp/submerge-was-here").exists()


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("{root}/bas", ("no such file or folder", "did you mean 'base'")),
        ("{root}/base/config.json", ("not a weight file",)),
        ("{root}/base@main", ("a local path has no revisions",)),
        ("{root}/base+{root}/tuned0", ("holds no adapter",)),
        ("", ("a model is a folder or a Hub name",)),
    ],
)
def test_models_that_are_not_there(made: Family, tmp_path: Path, spec: str, parts: tuple[str, ...]) -> None:
    recipe = made.write_recipe("task_arithmetic", base_model=spec.format(root=tmp_path))
    refused(merge(recipe, tmp_path / "out"), tmp_path / "out", 2, *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ("no such file", "check the path")),
        ("", ("the recipe is empty",)),
        ("merge_method: ties\nmodels: [", ("this is not YAML", "recipe.yaml:")),
        ("- a\n- b\n", ("a recipe is a mapping",)),
        (
            "merge_method: tis\nmodels:\n- model: a\n",
            ("unknown method 'tis'", "did you mean 'ties'?", "recipe.yaml:1"),
        ),
        (
            "merge_method: linear\nmodel:\n- model: a\n",
            ("unknown key 'model'", "did you mean 'models'?", "recipe.yaml:2"),
        ),
        (b"\xff\xfe\xfd\x00\x01", ("recipe.yaml",)),
    ],
)
def test_recipes_that_are_none(tmp_path: Path, text: Any, parts: tuple[str, ...]) -> None:
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(merge(path, tmp_path / "out"), tmp_path / "out", 2, *parts)


def test_a_file_that_shrinks_after_the_plan(made: Family, tmp_path: Path) -> None:
    plan = submerge.plan(made.recipe("task_arithmetic"), ROOM)
    os.truncate(weights(made.tuned[0]), 5_000)
    with pytest.raises(submerge.WorkError, match=r"the file ended .* early"):
        submerge.merge(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_side_file_that_vanishes_after_the_plan(made: Family, tmp_path: Path) -> None:
    plan = submerge.plan(made.recipe("task_arithmetic"), ROOM)
    (made.base / "tokenizer.json").unlink()
    with pytest.raises(submerge.WorkError, match=r"tokenizer\.json: finishing failed"):
        submerge.merge(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
