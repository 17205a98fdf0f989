"""`submerge route`: tasks of the inputs of a file, printed, as JSON and as a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import submerge
from _cli import cli
from _mass_tasks import make, words
from _models import quiet_transformers

pytest.importorskip("transformers")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four tasks that have words of their own, with a tokenizer."""
    root = tmp_path_factory.mktemp("route")
    bert = make("bert", root)
    vocabulary = [*SPECIAL, *(f"w{i}" for i in range(5, 64))]
    t = quiet_transformers()
    t.BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(root / "base")
    return bert.merged("served")


def texts(task: int, count: int) -> list[str]:
    rows: torch.Tensor = words(task, count)
    return [" ".join(f"w{i}" for i in row) for row in rows.tolist()]


def lines(path: Path, told: bool = True) -> Path:
    rows = [{"text": text} | ({"task": f"task{t}"} if told else {}) for t in range(4) for text in texts(t, 5)]
    rows[0]["text_pair"] = "w7 w8"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_it_prints_tasks_and_whom_they_are_taken_for(served: Path, tmp_path: Path) -> None:
    result = cli("route", served, "--data", lines(tmp_path / "inputs.jsonl"), "--json")
    assert result.code == 0, result.err
    found = result.json
    assert found["tasks"] == [f"task{i}" for i in range(4)]
    assert len(found["inputs"]) == 20
    for number, line in enumerate(found["inputs"]):
        assert line["told"] == f"task{number // 5}"
        assert line["task"] == max(line["coefficients"], key=line["coefficients"].__getitem__)
    right = sum(line["told"] == line["task"] for line in found["inputs"])
    assert found["accuracy"] == right / 20
    assert sum(found["confusion"]["task2"].values()) == 5
    assert sum(found["confusion"][t][t] for t in found["tasks"]) == right
    assert len(found["sites"]) == 8
    text = cli("route", served, "--data", tmp_path / "inputs.jsonl")
    assert text.code == 0
    assert f"{right / 20:.1%} of 20 inputs got their own task" in text.out


def test_each_input_is_routed_as_it_is_alone(served: Path, tmp_path: Path) -> None:
    found = cli("route", served, "--data", lines(tmp_path / "all.jsonl"), "--json").json["inputs"]
    rows = (tmp_path / "all.jsonl").read_text().splitlines()
    for number in (0, 7, 19):
        (tmp_path / "one.jsonl").write_text(rows[number])
        (alone,) = cli("route", served, "--data", tmp_path / "one.jsonl", "--json").json["inputs"]
        assert alone["coefficients"] == pytest.approx(found[number]["coefficients"], abs=1e-3)


@pytest.mark.parametrize("told", [True, False])
def test_a_picture(served: Path, tmp_path: Path, told: bool) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "routing.svg"
    result = cli("route", served, "--data", lines(tmp_path / "a.jsonl", told=told), "--plot", picture)
    assert result.code == 0, result.err
    assert ("got their own task" if told else "chosen: task0") in result.out
    text = picture.read_text()  # letters are drawn as shapes; their text stands beside, as comments
    for layer in range(2):
        for site in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
            assert f"<!-- layer {layer}  {site} -->" in text
    assert "<!-- z-score over the tasks (red: better than the others) -->" in text
    assert ("own task -->" if told else "<!-- Chosen tasks of 20 inputs -->") in text
    png = tmp_path / "routing.png"
    assert cli("route", served, "--data", tmp_path / "a.jsonl", "--plot", png).code == 0
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_is_refused_before_a_model_is_loaded(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("submerge.report.survey", None)  # so that it cannot be called
    data = lines(tmp_path / "a.jsonl")
    (tmp_path / "old.svg").write_text("precious")
    for name, told in {
        "routing.pdf": "a picture is written as .png or .svg",
        "nowhere/routing.svg": "there is no such folder",
        "old.svg": "the file exists — choose another name, or allow --overwrite",
    }.items():
        result = cli("route", served, "--data", data, "--plot", tmp_path / name)
        assert (result.code, told in result.err) == (2, True)
    assert (tmp_path / "old.svg").read_text() == "precious"


def test_tables(served: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,task\nw7 w8 w9,task0\nw20 w21,task1\n")
    (tmp_path / "a.tsv").write_text("text\ttask\nw7 w8 w9\ttask0\nw20 w21\ttask1\n")
    one, other = (cli("route", served, "--data", tmp_path / f"a.{kind}", "--json") for kind in ("csv", "tsv"))
    assert one.code == 0
    assert one.json == other.json


def test_lines_of_text(served: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w7 w8 w9\nw20 w21\n")
    (tmp_path / "a.csv").write_text("text\nw7 w8 w9\nw20 w21\n")
    one, other = (cli("route", served, "--data", tmp_path / f"a.{kind}", "--json") for kind in ("txt", "csv"))
    assert one.code == 0, one.err
    assert one.json == other.json


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "w7"}\n{"text"', "a.jsonl:2: is no JSON"),
        ("a.jsonl", '{"words": "w7"}', "has no text and no image"),
        ("a.jsonl", "", "there are no inputs"),
        ("a.jsonl", '{"text": "w7", "task": "nobody"}', "unknown tasks: nobody"),
        ("a.jsonl", '{"image": "nothing.png"}', "there is no image"),
        ("a.xml", "w7", "is no kind of file that is read"),
        ("a.csv", "word\nw7\n", "has no text and no image"),
    ],
)
def test_wrong_data_exit_2(served: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    result = cli("route", served, "--data", tmp_path / name)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


def test_wrong_folders_exit_2(served: Path, tmp_path: Path) -> None:
    data = lines(tmp_path / "inputs.jsonl")
    assert cli("route", tmp_path, "--data", data).code == 2
    assert cli("route", served, "--data", tmp_path / "nothing.jsonl").code == 2


@pytest.mark.parametrize(
    ("package", "line"),
    [("transformers", 'pip install "submerge[models]"'), ("matplotlib", "pip install matplotlib")],
)
def test_a_package_that_is_not_installed(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    data = lines(tmp_path / "inputs.jsonl")
    result = cli("route", served, "--data", data, "--plot", tmp_path / "routing.png")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"{result.err.split(' need')[0]} needs the package {package} — {line}\n"
    if package == "transformers":
        result = cli("export", served, "-o", tmp_path / "adapters")
        assert (result.code, line in result.err) == (2, True), result.err
        assert not (tmp_path / "adapters").exists()
        with pytest.raises(submerge.RequestError, match=r"submerge\.load needs the package transformers"):
            submerge.load(served)
