"""`submerge calibrate`: the file that is written, what is printed, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import submerge.calibrate
from _calibrated import Calibrated, make_calibrated
from _cli import ROOM, cli, merge, standard_input
from _mass_tasks import make, words
from _models import quiet_transformers
from submerge.cli import _progress
from submerge.recipe import read_coefficients

pytest.importorskip("transformers")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return make_calibrated(tmp_path_factory.mktemp("calibrate"))


@pytest.fixture(scope="module")
def recipe(made: Calibrated) -> Path:
    return made.write("nsc.yaml", made.recipe())


def test_it_writes_a_file_by_which_a_merge_is_made(made: Calibrated, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "coefficients.json"
    result = cli("calibrate", recipe, "-o", out)
    assert result.code == 0, result.err
    content = json.loads(out.read_text())
    assert len(content["loss"]) == 3
    lines = result.out.splitlines()
    assert lines[0] == f"loss {content['loss'][0]:.5f} → {content['loss'][-1]:.5f} in 2 steps"
    assert "s a step · peak memory" in lines[1]
    for part in ("λ = 0.25", "isotropic", "mean     least   largest", f"written to {out}"):
        assert part in result.out, part
    assert f"no gradient reaches {len(content['unreached'])} modules, which keep 0.4" in result.out
    assert "does not fall with λ" in result.out
    again = made.write("ties.yaml", made.recipe("ties", data=False, coefficients=str(out)))
    assert merge(again, tmp_path / "merged").code == 0
    shown = cli("explain", again, "-t", "layers.0.self_attn.q_proj.weight").out
    law = content["coefficients"]["model.layers.0.self_attn.q_proj"]["law"]
    assert f"weight of {made.root / 'law'} = {law}   {out}" in shown


def test_measuring_alone_needs_no_file(recipe: Path) -> None:
    result = cli("calibrate", recipe, "--steps", "0")
    assert result.code == 0, result.err
    assert result.out.startswith("loss 0.")
    assert ", no step\n" in result.out
    assert "written to" not in result.out


def test_json_and_quiet(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "c.json"
    result = cli("calibrate", recipe, "-o", out, "--json", "--steps", 1)
    assert result.json == json.loads(out.read_text())
    assert len(result.json["loss"]) == 2
    learn = submerge.calibrate.calibrate_recipe

    def warned(*given: Any, **more: Any) -> Any:
        return replace(learn(*given, **more), warnings=("look",))

    monkeypatch.setattr(submerge.calibrate, "calibrate_recipe", warned)
    result = cli("calibrate", recipe, "-o", out, "-q", "--overwrite")
    assert result.out == f"{out}\n"
    assert result.err == "warning: look\n"
    assert len(json.loads(out.read_text())["loss"]) == 3


def test_a_recipe_from_standard_input(
    made: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", standard_input(yaml.safe_dump(made.recipe())))
    assert cli("calibrate", "-", "-o", tmp_path / "c.json", "-q").code == 0
    assert read_coefficients(tmp_path / "c.json").adapters == ("law", "chess")


def test_progress_tells_the_loss(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "FIRST", 0.0)
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    lines = cli("calibrate", recipe, "-o", tmp_path / "c.json").err.splitlines()
    assert lines[0].startswith("measuring: ")
    steps = [line for line in lines if line.startswith("calibrating")]
    assert steps[0].startswith("calibrating: 0%, loss 0.")
    assert steps[1].startswith("calibrating: 50%, loss 0.")
    assert steps[1].endswith("s left")
    result = cli("calibrate", recipe, "-o", tmp_path / "bar.json", terminal=True)
    assert "calibrating" in result.err
    result = cli("merge", recipe, tmp_path / "out", *ROOM)
    told = [line.partition(":")[0] for line in result.err.splitlines() if "%" in line]
    assert list(dict.fromkeys(told)) == ["measuring", "calibrating", "merging"]
    assert told.count("calibrating") == 3
    assert "weights learned in 2 steps" in result.out
    assert cli("merge", recipe, tmp_path / "bar", *ROOM, terminal=True).code == 0


def test_plan_and_explain_say_what_will_be_learned(recipe: Path) -> None:
    assert "learned before the merge, from data of 2 tasks in 2 steps" in cli("plan", recipe, *ROOM).out
    assert "= 0.4   initial, to be calibrated" in cli("explain", recipe, "-t", "q_proj").out


def test_a_picture(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "calibration.svg"
    result = cli("calibrate", recipe, "--steps", 0, "--plot", picture)
    assert result.code == 0, result.err
    assert f"drawn in {picture}" in result.out
    assert picture.stat().st_size > 1000


def test_without_matplotlib(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = cli("calibrate", recipe, "--steps", 0, "--plot", "x.png")
    assert result.code == 2
    assert "--plot needs the package matplotlib" in result.err


# --- what is refused --------------------------------------------------------------------------------------


def refusal(*argv: object) -> str:
    result = cli("calibrate", *argv)
    assert result.code == 2, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert " — " in result.err
    return result.err


def test_a_picture_of_another_kind_is_refused_before_any_work(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert "a picture is written as" in refusal(recipe, "--steps", 0, "--plot", tmp_path / "x.pdf")


def test_no_file_to_write(recipe: Path) -> None:
    assert "no file to write is named" in refusal(recipe)


def test_an_existing_file_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "diary.txt"
    out.write_text("mine")
    assert "the file exists" in refusal(recipe, "-o", out)
    assert "is a folder" in refusal(recipe, "-o", tmp_path, "--overwrite")
    assert "there is no such folder" in refusal(recipe, "-o", tmp_path / "no" / "c.json")
    assert "is what the command reads" in refusal(recipe, "-o", recipe, "--overwrite")
    assert out.read_text() == "mine"


def test_a_failure_leaves_the_old_file(made: Calibrated, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    bad = made.recipe()
    bad["models"][0]["data"] = str(tmp_path / "empty.jsonl")
    out = tmp_path / "c.json"
    out.write_text("old")
    assert "empty.jsonl: there are no inputs" in refusal(
        made.write("bad.yaml", bad), "-o", out, "--overwrite"
    )
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "empty.jsonl"]


def test_an_interrupt_writes_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("submerge.calibrate.calibrate_recipe", stop)
    result = cli("calibrate", recipe, "-o", tmp_path / "c.json")
    assert result.code == 130
    assert "interrupted: nothing was written" in result.err
    assert list(tmp_path.iterdir()) == []


def test_wrong_recipes_are_told_with_their_lines(made: Calibrated, tmp_path: Path) -> None:
    text = f"merge_method: nsc\nbase_model: {made.base}\nmodels:\n"
    text += f"  - model: {made.root / 'law'}\n    data: no.jsonl\n  - model: {made.root / 'chess'}\n"
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    told = refusal(path, "-o", tmp_path / "c.json")
    assert "bad.yaml:5: there is no such file or folder: 'no.jsonl'" in told
    assert "bad.yaml:6: " in told
    path.write_text(text.replace("nsc", "ties"))
    assert "bad.yaml:5: ties learns nothing from data" in refusal(path, "-o", tmp_path / "c.json")


def test_inputs_are_not_written_over(
    made: Calibrated, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (made.root / "law.jsonl", made.base / "config.json", made.root / "chess/adapter_config.json"):
        before = path.read_bytes()
        result = cli("calibrate", recipe, "-o", path, "--overwrite")
        assert result.code == 2
        assert f"{path}: would be written over the input" in result.err
        assert path.read_bytes() == before
    monkeypatch.setenv("HOME", str(made.root))
    asked = made.recipe()
    asked["models"][0]["data"] = "~/law.jsonl"
    recipe = made.write("from-home.yaml", asked)
    assert cli("calibrate", recipe, "-o", made.root / "law.jsonl", "--overwrite").code == 2


def test_the_file_and_the_picture_are_two(recipe: Path, tmp_path: Path) -> None:
    result = cli("calibrate", recipe, "-o", tmp_path / "one.svg", "--plot", tmp_path / "one.svg")
    assert result.code == 2
    assert "one.svg: would hold the coefficients and the picture both" in result.err


# --- the router of a served folder ----------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tasks that have words of their own, with a tokenizer."""
    root = tmp_path_factory.mktemp("router")
    bert = make("bert", root, 2)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 64))]
    tokenizer = quiet_transformers().BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(root / "base")
    return bert.merged("served")


def inputs(folder: Path, count: int = 40) -> list[str]:
    """Write inputs of both tasks, and return the flags that name them."""
    flags = []
    for task in range(2):
        lines = [" ".join(f"w{i}" for i in row) for row in words(task, count).tolist()]
        (folder / f"{task}.txt").write_text("\n".join(lines))
        flags += ["--data", f"task{task}={folder / f'{task}.txt'}"]
    return flags


def test_a_served_folder(served: Path, tmp_path: Path) -> None:
    data = inputs(tmp_path)
    result = cli("calibrate", served, *data)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("64 inputs of 2 tasks, ")
    assert lines[1].endswith("of them get their own task, as if they had not been seen")
    assert lines[2].endswith("do without the calibration")
    assert lines[3] == f"written to {served}"
    result = cli("calibrate", served, *data, "--samples", 16, "--json")
    assert result.json["inputs"] == {"task0": 16, "task1": 16}
    assert result.json["sites"] == 8
    assert cli("calibrate", served, *data, "-q").out == f"{served}\n"
    rows = [{"text": text, "task": f"task{t}"} for t in range(2) for text in texts_of(tmp_path, t)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    routed = cli("route", served, "--data", tmp_path / "all.jsonl", "--json").json
    assert routed["accuracy"] > 0.9
    assert cli("verify", served).code == 0


def test_inputs_of_a_served_folder_that_nobody_sorted(served: Path, tmp_path: Path) -> None:
    inputs(tmp_path)
    together = tmp_path / "together.txt"
    together.write_text("\n".join(texts_of(tmp_path, 0) + texts_of(tmp_path, 1)))
    result = cli("calibrate", served, "--data", together)
    assert result.code == 0, result.err
    first, *shares, last = result.out.splitlines()
    assert first.startswith("64 inputs, ")
    assert [line.split()[1] for line in shares] == ["task0", "task1"]
    assert last == f"written to {served}"
    assert cli("calibrate", served, "--data", together, "--json").json["inputs"] == 64


def texts_of(folder: Path, task: int) -> list[str]:
    return (folder / f"{task}.txt").read_text().splitlines()


def test_what_is_refused_of_a_folder(served: Path, recipe: Path, tmp_path: Path) -> None:
    data = inputs(tmp_path)
    for arguments, message in (
        ((served,), "there are no inputs of task0, task1"),
        ((served, *data[:2]), "there are no inputs of task1"),
        ((served, *data, *data), "task0 has inputs twice"),
        ((served, "--data", "a.txt", "--data", "b.txt"), "'a.txt' is not TASK=INPUTS"),
        ((served, "--data", "inputs.txt"), "inputs.txt: cannot be read"),
        ((served, *data, "--data", "nobody=x.txt"), "there is no task 'nobody'"),
        ((served, *data[:2], "--data", "task1=nothing.txt"), "cannot be read"),
        ((served, *data, "--steps", 3), "--steps does not go with a folder"),
        ((served, *data, "-o", tmp_path / "c.json"), "--out does not go with a folder"),
        ((served, *data, "--overwrite"), "--overwrite does not go with a folder"),
        ((recipe, *data, "--steps", 0), "--data does not go with a recipe"),
        ((tmp_path, *data), "there is no submerge.json"),
    ):
        result = cli("calibrate", *arguments)
        assert result.code == 2, arguments
        assert message in result.err, result.err
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    result = cli("calibrate", served, *data[:2], "--data", f"task1={tmp_path / 'images'}")
    assert result.code == 2
    assert "there is no image processor" in result.err
