"""A source of data with its defaults, and what a source cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from submerge.errors import RequestError
from submerge.recipe import DataSpec, data_files, data_spec


def test_paths_and_mappings() -> None:
    assert data_spec("a.csv") == data_spec(Path("a.csv")) == data_spec({"path": "a.csv"}) == DataSpec("a.csv")
    whole = {"path": "glue", "name": "mnli", "split": "train", "columns": {"text": "premise"}, "limit": 2}
    assert data_spec(whole) == DataSpec("glue", "mnli", "train", {"text": "premise"}, 2)
    assert data_spec({"path": "a", "split": None}) == DataSpec("a")
    assert data_spec("~/a.csv").path == data_spec(Path("~/a.csv")).path == str(Path.home() / "a.csv")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "data: there is no path — path: inputs.jsonl"),
        ({"path": ""}, "data: path is '', not a path — path: inputs.jsonl"),
        ({"path": "a", "colums": {}}, "data: unknown key 'colums' — did you mean 'columns'?"),
        ({"path": "a", "x": 1}, "data: unknown key 'x' — there are path, name, split, columns, limit"),
        ({"path": "a", "limit": 0}, "data: limit is 0, not a number of rows — limit: 256"),
        ({"path": "a", "limit": True}, "data: limit is True, not a number of rows"),
        ({"path": "a", "split": 3}, "data: split is 3, not the name of a split — split: validation"),
        (
            {"path": "a", "columns": {"question": "text"}},
            "data: columns is {'question': 'text'}, not names for some of text, text_pair, image, messages, "
            "task, system, tools — columns: {text: question}",
        ),
        ({"path": "a", "columns": ["text"]}, "data: columns is ['text'], not names for some of text"),
    ],
)
def test_what_is_no_source(source: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        data_spec(source)
    assert str(error.value).startswith(message)


def test_the_files_of_data(tmp_path: Path) -> None:
    for name in ("b.jsonl", "pictures/c/1.png", "pictures/0.png", "pictures/.thumbs/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert data_files(tmp_path / "b.jsonl") == [tmp_path / "b.jsonl"]
    pictures = tmp_path / "pictures"
    assert data_files({"path": str(pictures), "limit": 1}) == [pictures / "0.png", pictures / "c" / "1.png"]
    assert data_files("org/name") == []


def test_all_problems_are_told() -> None:
    with pytest.raises(RequestError) as error:
        data_spec({"limit": -1, "name": 2, "z": 0})
    assert len(error.value.problems) == 4
