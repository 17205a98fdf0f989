"""Items of files: JSON lines and tables, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from submerge.calibrate import Item, read_items
from submerge.errors import RequestError


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text('{"text": "a", "text_pair": "b", "task": "t", "more": 1}\n\n{"text": 7}\n')
    assert read_items(path) == [Item("a", "b", None, "t"), Item("7")]
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}')  # as some editors begin a file
    assert read_items(path) == [Item("a")]


def test_tables_say_what_json_lines_say(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,text_pair,task\n"a, b",c,t\nd,,\n')
    (tmp_path / "a.tsv").write_text("text\ttext_pair\ttask\na, b\tc\tt\nd\t\t\n")
    expected = [Item("a, b", "c", None, "t"), Item("d")]
    assert read_items(tmp_path / "a.csv") == expected
    assert read_items(tmp_path / "a.tsv") == expected


def test_images_start_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").touch()
    path = tmp_path / "inputs.csv"
    path.write_text("image,task\nimages/one.png,digits\n")
    (item,) = read_items(path)
    assert item == Item(image=tmp_path / "images" / "one.png", task="digits")
    assert item.shown == str(tmp_path / "images" / "one.png")
    assert Item("a", "b").shown == "a | b"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "w7"}\n{"text"', "a.jsonl:2: is no JSON"),
        ("a.jsonl", "[1]", "a.jsonl:1: has no text and no image — columns are text, text_pair, image, task"),
        ("a.csv", "text\n\nx\n\nword\n", ""),
        ("a.jsonl", "\n", "a.jsonl: there are no inputs"),
        ("a.jsonl", '{"image": "nothing.png"}', "a.jsonl:1: there is no image"),
        ("a.txt", "w7", "a.txt: is no kind of file that is read — .jsonl, .csv or .tsv"),
        ("a.tsv", "word\nw7\n", "a.tsv:2: has no text and no image"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    if not message:
        assert len(read_items(tmp_path / name)) == 2
        return
    with pytest.raises(RequestError) as error:
        read_items(tmp_path / name)
    assert message in str(error.value)


def test_texts_and_images_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "one.png").touch()
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"image": "one.png"}\n')
    with pytest.raises(RequestError, match="there are texts and images — make two files"):
        read_items(tmp_path / "a.jsonl")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file or directory"):
        read_items(tmp_path / "nothing.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="cannot be read \\(not UTF-8\\)"):
        read_items(tmp_path / "a.jsonl")
