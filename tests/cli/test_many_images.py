"""`submerge many …` of a base that reads images: data files, and folders, of images on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from _cli import ROOM, Result, cli
from _projectors import LlavaTasks, make_llava_tasks
from calibrate.helpers_processors import write_images

pytest.importorskip("transformers")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LlavaTasks:
    return make_llava_tasks(tmp_path_factory.mktemp("images"), rows=4)


@pytest.fixture
def state(made: LlavaTasks, tmp_path: Path) -> Path:
    assert cli("many", "init", made.path("base"), "-o", tmp_path / "state").code == 0
    return tmp_path / "state"


def add(made: LlavaTasks, state: Path, task: str, data: Path, *more: object) -> Result:
    return cli(
        "many", "add", state, "--task", task, "--model", made.path(f"{task}-lora"), "--data", data, *more
    )


def test_tasks_with_images_from_files(
    made: LlavaTasks, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = add(made, state, "red", made.path("red.jsonl"))
    assert result.code == 0, result.err
    assert "prototypes: 1, of 4 images" in result.out
    result = add(made, state, "blue", made.path("blue.jsonl"), "--json", "--prototypes", 2)
    assert result.json["projector"]["prototypes"] == 2
    assert result.json["warnings"] == []
    monkeypatch.chdir(tmp_path)
    for form, name in (("adapter", "an adapter"), ("checkpoint", "a checkpoint é")):
        result = cli("many", "export", state, "-o", name, "--as", form, *ROOM)
        assert result.out == f"{name}\n{form} of blue, red · rank 4 · 2 projectors mixed by image\n"
        assert (tmp_path / name / "bank.safetensors").is_file()
    assert (tmp_path / "a checkpoint é" / "processor_config.json").is_file()


def test_images_that_cannot_be_read_are_told_with_their_line(
    made: LlavaTasks, state: Path, tmp_path: Path
) -> None:
    good, bad = write_images(tmp_path, "good.png", "bad.png")
    bad.write_bytes(good.read_bytes()[:50])
    rows = [{"image": image, "text": "a b"} for image in ("good.png", "bad.png")]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path, place in ((data, f"{data}:2: the image {bad}"), (tmp_path, f"{bad}: the image")):
        result = add(made, state, "red", path)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"error: {place}")
    assert "no tasks" in cli("many", "export", state, "-o", tmp_path / "out").err


def test_what_is_no_data_of_a_task_with_images(made: LlavaTasks, state: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "alone", "1.png", "2.png")
    result = add(made, state, "red", tmp_path / "alone")
    assert result.code == 2
    assert "give images with their questions" in result.err
    (tmp_path / "texts.jsonl").write_text('{"text": "a b"}\n')
    result = add(made, state, "red", tmp_path / "texts.jsonl")
    assert result.code == 2
    assert "no input has an image for the projector" in result.err


def test_options_of_the_gate(made: LlavaTasks, state: Path, tmp_path: Path) -> None:
    for task in ("red", "blue"):
        assert add(made, state, task, made.path(f"{task}.jsonl")).code == 0
    status = cli("many", "status", state).out
    assert "statistics of images and questions, for a discriminant:" in status
    assert "overlap of images, 1 where a discriminant tells nothing" in status
    wanted = {"score": "discriminant", "temperature": 1.0, "key": "image"}
    assert settings_of(state, tmp_path / "usual") | wanted == settings_of(state, tmp_path / "usual")
    options = ("--score", "prototypes", "--not-centred", "--key", "both", "--top", 1)
    settings = settings_of(state, tmp_path / "own", *options)
    assert "score" not in settings
    wanted = {"centred": False, "key": "both", "top": 1, "temperature": 0.03}
    assert settings | wanted == settings
    refused = cli("many", "export", state, "-o", tmp_path / "no", "--score", "nearest")
    assert (refused.code, "score is 'nearest', and must be one of" in refused.err) == (2, True)


def settings_of(state: Path, out: Path, *options: object) -> dict[str, object]:
    result = cli("many", "export", state, "-o", out, "--overwrite", *options)
    assert result.code == 0, result.err
    settings: dict[str, object] = json.loads((out / "submerge.json").read_text())["gate"]["settings"]
    return settings


def test_a_checkpoint_in_another_dtype(made: LlavaTasks, state: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert add(made, state, "red", made.path("red.jsonl")).code == 0
    as_checkpoint = ("many", "export", state, "-o", tmp_path / "out", "--as", "checkpoint", *ROOM)
    assert cli(*as_checkpoint, "--dtype", "bfloat16").code == 0
    assert {str(t.dtype) for t in load_file(tmp_path / "out/model.safetensors").values()} == {
        "torch.bfloat16"
    }
    assert json.loads((tmp_path / "out/submerge.json").read_text())["recipe"]["dtype"] == "bfloat16"
    refused = cli("many", "export", state, "-o", tmp_path / "no", "--dtype", "bfloat16")
    assert (refused.code, "an adapter is written in float32" in refused.err) == (2, True)
