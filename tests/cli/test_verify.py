"""submerge verify."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import submerge
from _cli import cli
from _models import ROOM as SETTINGS
from _models import Family, state, write


@pytest.fixture
def merged(recipe: Path, tmp_path: Path) -> Path:
    return submerge.merge(recipe, tmp_path / "out", settings=replace(SETTINGS, shard_size=5000)).out


def test_verify(merged: Path) -> None:
    result = cli("verify", merged)
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith("sound: 9 tensors")
    assert "note" in result.out, "there is no class called ToyModel"
    found = cli("verify", merged, "--json", "--no-load").json
    assert set(found) == {
        "folder", "tensors", "bytes", "nonfinite", "problems", "skipped", "loaded", "sound"
    }  # fmt: skip
    assert found["sound"] is True
    assert found["tensors"] == 9


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_verify_names_the_tensor_of_a_flipped_bit(merged: Path) -> None:
    index = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    file = index["model.norm.weight"]
    tensors = [n for n, f in index.items() if f == file]
    flip(merged / file, -1)  # in the file's last tensor
    result = cli("verify", merged, "--no-load")
    assert result.code == 1
    wrong = [line for line in result.out.splitlines() if line.startswith("wrong")]
    assert len(wrong) == 1
    assert any(name in wrong[0] for name in tensors)
    assert file in wrong[0]
    assert "NOT sound: 1 problem" in result.out
    assert cli("verify", merged, "--no-load", "--json").json["sound"] is False


@pytest.mark.parametrize("damage", ["nan", "shard gone", "shard cut", "renamed", "resaved", "other base"])
def test_verify_finds(merged: Path, made: Family, damage: str) -> None:
    shard = merged / "model-00001-of-00004.safetensors"
    first = next(iter(read_shard(shard)))
    argv: list[object] = ["verify", merged, "--no-load"]
    part = first
    if damage == "nan":
        tensors = read_shard(shard)
        tensors[first].view(-1)[0] = torch.nan
        save(tensors, shard)
        part = f"{first}: 1 values are NaN or Inf"
    elif damage == "shard gone":
        shard.unlink()
        part = f"the shard {shard.name}, which the index names, is missing"
    elif damage == "shard cut":
        os.truncate(shard, 1000)
        part = "truncated"
    elif damage == "renamed":
        tensors = read_shard(shard)
        save({("new" if n == first else n): t for n, t in tensors.items()}, shard)
        part = "index"
    elif damage == "resaved":
        save({n: t.to(torch.bfloat16) for n, t in read_shard(shard).items()}, shard)
        part = f"BF16, not F32 as written ({first}"
    elif damage == "other base":
        other = state({"model.norm.weight": (3,)})
        argv += ["--base", write(merged.parent / "other", other)]
        part = "model.norm.weight: the base's shape is [3]"
    result = cli(*argv)
    assert result.code == 1, result.out
    assert part in result.out
    assert "bug in submerge" not in result.err


@pytest.mark.parametrize(
    ("written", "copied"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float64), (torch.float32, torch.bfloat16)],
)
def test_verify_of_a_copy_in_another_dtype(
    written: torch.dtype, copied: torch.dtype, made: Family, tmp_path: Path
) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(made.base), "parameters": {"weight": 1.0}}],
        "dtype": str(written).removeprefix("torch."),
    }
    out = submerge.merge(recipe, tmp_path / "copy", settings=SETTINGS).out
    file = out / "model.safetensors"
    tensors = {name: tensor.to(copied) for name, tensor in read_shard(file).items()}
    save(tensors, file)
    report = submerge.verify(out, load=False)
    [once] = report.problems
    assert once.startswith(f"{len(tensors)} tensors are ")
    wider = written.itemsize < copied.itemsize
    assert any("not compared" in note for note in report.skipped) is not wider
    norm = "model.norm.weight"
    tensors[norm][0] += 0.5
    save(tensors, file)
    problems = submerge.verify(out, load=False).problems
    assert problems[0] == once
    assert [p.split(":")[0] for p in problems[1:]] == ([norm] if wider else [])


def read_shard(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {n: t.clone() for n, t in load_file(file).items()}


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "manifest",
    [
        "{", "[]", "{}", '{"tensors": {}}', '{"tensors": [], "recipe": {}}', "\0\xff",
        '{"tensors": {"model.norm.weight": {}}, "recipe": {}}',
        '{"tensors": {"model.norm.weight": 3}, "recipe": {}}',
        '{"tensors": {"a": {"dtype": "F32", "shape": [16], "block": 0, "xxh3_128": "a"}}, "recipe": {}}',
    ],
)  # fmt: skip
def test_verify_with_a_damaged_manifest(merged: Path, manifest: str) -> None:
    (merged / "submerge.json").write_text(manifest)
    result = cli("verify", merged, "--no-load")
    assert result.code == 2
    assert "submerge.json" in result.err
    assert "the file is damaged" in result.err


def test_verify_of_other_folders(made: Family, tmp_path: Path) -> None:
    for folder in (made.base, tmp_path / "nowhere"):
        result = cli("verify", folder)
        assert (result.code, result.out) == (2, "")
        assert "there is no submerge.json" in result.err
        assert str(folder) in result.err


def test_verify_when_the_inputs_are_gone(merged: Path, made: Family) -> None:
    made.base.rename(made.base.with_name("moved"))
    result = cli("verify", merged, "--no-load")
    assert result.code == 0
    assert "names against the base" in result.out
    result = cli("verify", merged, "--no-load", "--base", made.base.with_name("moved"))
    assert result.code == 0
    assert "names against the base" not in result.out
    assert cli("verify", merged, "--no-load", "--base", made.base).code == 2
