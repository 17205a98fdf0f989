"""The chat template of a folder, wherever it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from submerge.errors import RequestError
from submerge.store import read_chat_template, write_chat_template


def test_a_folder_without_one(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    for content in ({}, {"chat_template": " "}, {"chat_template": [{"name": "tools", "template": "x"}]}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
        assert read_chat_template(tmp_path) is None


@pytest.mark.parametrize("template", ["one", [{"name": "default", "template": "one"}], {"default": "one"}])
def test_where_it_stands(tmp_path: Path, template: object) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "zero"}))
    assert read_chat_template(tmp_path) == "zero"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert read_chat_template(tmp_path) == "one"
    (tmp_path / "chat_template.jinja").write_text("two")
    assert read_chat_template(tmp_path) == "two"


def test_it_is_written_wherever_a_reader_looks(tmp_path: Path) -> None:
    write_chat_template(tmp_path, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["chat_template.jinja"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"a": 1, "chat_template": "old"}))
    (tmp_path / "chat_template.json").write_text("{}")
    write_chat_template(tmp_path, "two")
    assert (tmp_path / "chat_template.jinja").read_text() == "two"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config == {"a": 1, "chat_template": "two"}
    assert json.loads((tmp_path / "chat_template.json").read_text()) == {"chat_template": "two"}


def test_a_file_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(RequestError):
        read_chat_template(tmp_path)


def test_templates_beside_the_one_that_is_written_stay(tmp_path: Path) -> None:
    """A configuration of an older form lists them; the file of the new one would hide them."""
    rows = [{"name": name, "template": name.upper()} for name in ("default", "rag", "../out")]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": rows}))
    write_chat_template(tmp_path, "one")
    assert read_chat_template(tmp_path) == "one"
    others = {path.name: path.read_text() for path in (tmp_path / "additional_chat_templates").iterdir()}
    assert others == {"rag.jinja": "RAG"}
