"""Where the output may go, what it may replace, and what stands beside the weights."""

import errno
import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

import submerge
from _models import CONFIG, ROOM, Family, contents, family, perturbed, read, state, write
from submerge.engine.output import _folder
from submerge.engine.work import ChunkReader
from submerge.store import _open_checkpoint
from submerge.store.folder import _hub


@pytest.fixture
def made(tmp_path: Path) -> Family:
    return family(tmp_path / "models")


def merge(made: Family, out: Path, **more: Any) -> submerge.MergeReport:
    return submerge.merge(made.recipe("task_arithmetic"), out, settings=ROOM, **more)


def snapshot(root: Path) -> dict[str, bytes]:
    return contents(root)


# --- what is there already ------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_left_alone(made: Family, tmp_path: Path) -> None:
    write(tmp_path / "out", {"old": torch.ones(2)})
    before = snapshot(tmp_path)
    for resumes in (False, True):
        with pytest.raises(submerge.RequestError, match=r"not empty.*--overwrite"):
            merge(made, tmp_path / "out", resume=resumes)
    assert snapshot(tmp_path) == before


def test_an_empty_folder_is_filled(made: Family, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (merge(made, tmp_path / "out").out / "model.safetensors").exists()


def test_parents_are_made(made: Family, tmp_path: Path) -> None:
    assert merge(made, tmp_path / "a" / "b" / "out").out.is_dir()


def test_a_relative_output_and_a_trailing_slash(
    made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = submerge.merge(made.recipe("task_arithmetic"), "deep/out/", settings=ROOM)
    assert report.out == tmp_path / "deep" / "out"
    assert sorted(os.listdir(tmp_path / "deep")) == ["out"]


@pytest.mark.parametrize("target", ["real", "nowhere"])
def test_a_link_is_followed(made: Family, tmp_path: Path, target: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    report = merge(made, tmp_path / "link")
    assert report.out == tmp_path / target
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "model.safetensors").exists()
    assert "link.incomplete" not in os.listdir(tmp_path)


def test_overwrite(made: Family, tmp_path: Path) -> None:
    write(tmp_path / "out", {"old": torch.ones(2)}, shards=1)
    (tmp_path / "out" / "model.safetensors.index.json").write_text("stale")
    report = merge(made, tmp_path / "out", overwrite=True)
    assert snapshot(report.out) == snapshot(merge(made, tmp_path / "other" / "out").out)
    assert sorted(os.listdir(tmp_path)) == ["models", "other", "out"]


def test_overwrite_of_nothing(made: Family, tmp_path: Path) -> None:
    assert merge(made, tmp_path / "out", overwrite=True).out.is_dir()


@pytest.mark.parametrize("moment", ["work", "finish"])
def test_a_run_that_fails_leaves_what_it_would_have_replaced(
    made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write(tmp_path / "out", {"old": torch.ones(2)})
    before = snapshot(tmp_path / "out")

    def fail(*_: object) -> None:
        raise submerge.WorkError("the disk is gone")

    if moment == "work":
        monkeypatch.setattr(ChunkReader, "spans", fail)
    else:
        monkeypatch.setattr(_folder, "sync_folder", fail)
    with pytest.raises(submerge.WorkError, match="the disk is gone"):
        merge(made, tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(
    "holds", ["code.py", "recipe.yaml", "notes/model.safetensors", "moments-1.safetensors"]
)
def test_overwrite_does_not_take_a_folder_that_holds_no_model(
    made: Family, tmp_path: Path, holds: str
) -> None:
    (tmp_path / "out" / holds).parent.mkdir(parents=True)
    (tmp_path / "out" / holds).write_text("precious")
    with pytest.raises(submerge.RequestError, match="holds no model"):
        merge(made, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / holds).read_text() == "precious"


def test_overwrite_does_not_take_the_recipe(made: Family, tmp_path: Path) -> None:
    out = write(tmp_path / "out", {"old": torch.ones(2)})
    recipe = out / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(made.recipe("task_arithmetic")))
    with pytest.raises(submerge.RequestError, match="holds the recipe"):
        submerge.merge(recipe, out, settings=ROOM, overwrite=True)
    assert recipe.exists()


def test_overwrite_does_not_lose_what_an_earlier_one_set_aside(made: Family, tmp_path: Path) -> None:
    write(tmp_path / "out", {"old": torch.ones(2)})
    write(tmp_path / "out.replaced", {"older": torch.ones(2)})
    before = snapshot(tmp_path)
    with pytest.raises(submerge.RequestError, match="set aside"):
        merge(made, tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_folder_that_appears_during_the_run_is_not_replaced(
    made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = _folder.Output.finish

    def slowly(self: Any, *arguments: Any) -> None:
        write(tmp_path / "out", {"new": torch.ones(2)})
        finish(self, *arguments)

    monkeypatch.setattr(_folder.Output, "finish", slowly)
    with pytest.raises(submerge.WorkError, match="not empty"):
        merge(made, tmp_path / "out")
    assert set(read(tmp_path / "out")) == {"new"}
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "out")
    assert merge(made, tmp_path / "out", resume=True).bytes_read == 0


def _place(made: Family, tmp_path: Path, where: str) -> Path:
    return {
        "over the base": made.base,
        "over a fine-tune": made.tuned[1],
        "in an input": made.base / "merged",
        "above the inputs": made.base.parent,
        "through a link": tmp_path / "link" / "merged",
        "by dots": made.base.parent / "x" / ".." / "base",
    }[where]


@pytest.mark.parametrize(
    "where",
    ["over the base", "over a fine-tune", "in an input", "above the inputs", "through a link", "by dots"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_inputs_are_never_written_to(made: Family, tmp_path: Path, where: str, overwrite: bool) -> None:
    (tmp_path / "link").symlink_to(made.tuned[0])
    before = snapshot(tmp_path)
    with pytest.raises(submerge.RequestError, match="would lie in, or over, the input"):
        merge(made, _place(made, tmp_path, where), overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_an_input_in_the_place_of_the_unfinished_folder(made: Family, tmp_path: Path) -> None:
    shutil.copytree(made.base, tmp_path / "out.incomplete")
    recipe = made.recipe("task_arithmetic") | {"base_model": str(tmp_path / "out.incomplete")}
    with pytest.raises(submerge.RequestError, match="would lie in, or over, the input"):
        submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert (tmp_path / "out.incomplete" / "config.json").exists()


@pytest.mark.parametrize("what", ["file", "pipe", "folder", "link", "link to a model"])
def test_something_else_in_the_place_of_the_unfinished_folder(
    made: Family, tmp_path: Path, what: str
) -> None:
    place = tmp_path / "out.incomplete"
    if what == "file":
        place.write_text("mine")
    elif what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("mine")
    else:
        write(tmp_path / "elsewhere", {"mine": torch.ones(1)})
        place.symlink_to(tmp_path / ("elsewhere" if "model" in what else "nowhere"))
    for resumes in (False, True):
        with pytest.raises(submerge.RequestError, match="that no merge made — remove it"):
            merge(made, tmp_path / "out", resume=resumes)
    assert os.path.lexists(place)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["file", "device", "long", "circle", "root", "mount", "under a file"])
def test_places_that_cannot_be_a_folder(made: Family, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    place = {
        "file": tmp_path / "file",
        "device": Path("/dev/null"),
        "long": tmp_path / ("x" * 300),
        "circle": tmp_path / "circle",
        "root": Path("/"),
        "mount": Path("/proc"),
        "under a file": tmp_path / "file" / "out",
    }[what]
    with pytest.raises(submerge.SubmergeError) as caught:
        merge(made, place, overwrite=True)
    assert str(place) in str(caught.value)
    assert " — " in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
    assert not Path("/dev/null.incomplete").exists()


# --- what is written ------------------------------------------------------------------------------


def test_the_layout_is_that_of_safetensors(made: Family, tmp_path: Path) -> None:
    out = merge(made, tmp_path / "out").out
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(state())


@pytest.mark.parametrize("size", [1, 2_000, 4_000, 10**6])
def test_shards_and_their_index(made: Family, tmp_path: Path, size: int) -> None:
    report = submerge.merge(
        made.recipe("task_arithmetic"), tmp_path / "out", settings=replace(ROOM, shard_size=size)
    )
    files = sorted(p.name for p in report.out.glob("*.safetensors"))
    sizes = {f: sum(t.nbytes for t in read_one(report.out / f).values()) for f in files}
    assert all(n <= size or len(read_one(report.out / f)) == 1 for f, n in sizes.items())
    if size == 10**6:
        assert files == ["model.safetensors"]
        return
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    index = json.loads((report.out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert index["weight_map"] == {n: f for f in files for n in read_one(report.out / f)}
    assert submerge.verify(report.out, load=False).sound


@pytest.mark.parametrize(
    ("stem", "size"),
    [("diffusion_pytorch_model", 2_000), ("diffusion_pytorch_model", 10**6), ("open_clip_model", 10**6)],
)
def test_diffusers_and_open_clip_find_their_weights(
    made: Family, tmp_path: Path, stem: str, size: int
) -> None:
    for folder in (made.base, *made.tuned):
        (folder / "model.safetensors").rename(folder / f"{stem}.safetensors")
    out = submerge.merge(made.recipe("linear"), tmp_path / "out", settings=replace(ROOM, shard_size=size)).out
    names = [p.name for p in out.iterdir() if ".safetensors" in p.name]
    assert names
    assert all(name.startswith(stem) for name in names)
    assert (f"{stem}.safetensors.index.json" in names) == (size == 2_000)
    assert submerge.verify(out, load=False).sound


def read_one(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_the_output_is_an_input_again(made: Family, tmp_path: Path) -> None:
    first = submerge.merge(
        made.recipe("task_arithmetic"), tmp_path / "first", settings=replace(ROOM, shard_size=4000)
    ).out
    again = submerge.merge(
        {"merge_method": "passthrough", "models": [{"model": str(first)}]}, tmp_path / "second", settings=ROOM
    ).out
    a, b = read(first), read(again)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not (again / "model.safetensors.index.json").exists()


def test_the_manifest_can_be_merged_by_again(made: Family, tmp_path: Path) -> None:
    first = submerge.merge(made.recipe("ties", {"density": 0.3}), tmp_path / "a" / "out", settings=ROOM).out
    manifest = json.loads((first / "submerge.json").read_text())
    second = submerge.merge(manifest["recipe"], tmp_path / "b" / "out", settings=ROOM).out
    assert contents(second)["submerge.json"] == contents(first)["submerge.json"]
    assert contents(second)["model.safetensors"] == contents(first)["model.safetensors"]


def test_odd_names_of_tensors(tmp_path: Path) -> None:
    names = ["模型.0.weight", 'a"b', "a/b", "a\nb", "x" * 3000, "  ", "é\u202e", "back\\slash", "[bold]"]
    made = family(tmp_path, shapes=dict.fromkeys(names, (3,)))
    out = submerge.merge(
        made.recipe("task_arithmetic"), tmp_path / "out", settings=replace(ROOM, shard_size=20)
    ).out
    assert set(read(out)) == set(names)
    assert submerge.verify(out, load=False).sound


def test_a_model_of_the_hub(made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commit is recorded, and the card names it; a local path that looks like an id is not named."""
    monkeypatch.setattr(_open_checkpoint, "fetch", lambda *_, **__: _hub.Fetched(made.base, "c0ffee"))
    monkeypatch.chdir(made.base.parent.parent)
    local = [f"{made.base.parent.name}/{t.name}" for t in made.tuned]
    recipe = made.recipe("task_arithmetic") | {
        "base_model": "org/model@main",
        "models": [{"model": t, "parameters": {"weight": 1}} for t in local],
    }
    out = submerge.merge(recipe, tmp_path / "out", settings=ROOM).out
    manifest = json.loads((out / "submerge.json").read_text())
    assert [m.get("revision") for m in manifest["models"]] == ["c0ffee", None, None]
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert front["base_model"] == ["org/model"]
    assert front["base_model_relation"] == "merge"


def test_a_file_system_that_cannot_lock_or_sync_folders(
    made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    def files_only(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(os, "fsync", files_only)
    assert merge(made, tmp_path / "out").out.is_dir()


def test_the_card(made: Family, tmp_path: Path) -> None:
    text = (merge(made, tmp_path / "out").out / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert {"merge", "submerge"} <= set(front["tags"])
    assert "base_model" not in front, "a local path is no Hub id"
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0]) == made.recipe("task_arithmetic")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"text_config": {"dtype": "float32", "n": 1}},
         {"text_config": {"dtype": "bfloat16", "n": 1}, "dtype": "bfloat16"}),
        ({"dtype": "float32", "vision_config": {"torch_dtype": "float16"}},
         {"dtype": "bfloat16", "vision_config": {"torch_dtype": "bfloat16"}}),
        ({}, {"dtype": "bfloat16"}),
    ],
)  # fmt: skip
def test_the_configs_dtype(tmp_path: Path, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    base = state()
    made = Family(
        write(tmp_path / "base", base, CONFIG | given),
        (write(tmp_path / "tuned", perturbed(base, 1)),),
        "Toy",
    )
    for key in ("dtype", "out_dtype"):
        recipe = made.recipe("task_arithmetic") | {key: "bf16"}
        out = submerge.merge(recipe, tmp_path / key, settings=ROOM).out
        assert json.loads((out / "config.json").read_text()) == CONFIG | wanted
        assert {t.dtype for t in read(out).values()} == {torch.bfloat16}
    recipe |= {"dtype": "float16"}  # beside out_dtype, which is what is written
    out = submerge.merge(recipe, tmp_path / "both", settings=ROOM).out
    assert json.loads((out / "config.json").read_text()) == CONFIG | wanted
