"""Rows of files of all forms, packed or not, and of folders of images."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from calibrate.helpers_processors import write_images
from submerge.calibrate._rows import FORMATS, folder_rows, read_rows
from submerge.errors import RequestError
from submerge.recipe import DATA_FORMATS, data_format

CUT = gzip.compress(b"text" * 9, mtime=0)[:-9]  # the time would make another test of it for each worker
ROWS = [{"text": "a, b", "task": "t"}, {"text": "c", "task": ""}]
FILES = {
    "a.jsonl": '{"text": "a, b", "task": "t"}\n\n{"text": "c", "task": ""}\n',
    "a.json": '\ufeff \n[{"text": "a, b", "task": "t"},\n {"text": "c", "task": ""}]\n',
    "lines.json": '{"text": "a, b", "task": "t"}\r\n{"text": "c", "task": ""}',
    "a.csv": 'text,task\r\n"a, b",t\r\nc,\r\n',
    "a.tsv": "text\ttask\na, b\tt\nc\t\n",
}


@pytest.mark.parametrize("name", FILES)
def test_all_forms_say_the_same_also_packed(tmp_path: Path, name: str) -> None:
    path, packed = tmp_path / name, tmp_path / f"{name}.gz"
    path.write_text(FILES[name], newline="")
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    assert [row for _, row in read_rows(path)] == ROWS
    assert [row for _, row in read_rows(packed)] == ROWS
    assert data_format(packed) == data_format(path)


@pytest.mark.parametrize("ending", [".bz2", ".xz", ".zst"])
def test_other_packed_files(tmp_path: Path, ending: str) -> None:
    path, cut = tmp_path / f"a.csv{ending}", tmp_path / f"cut.csv{ending}"
    packed = _packed(FILES["a.csv"].encode(), ending)
    path.write_bytes(packed)
    assert [row for _, row in read_rows(path)] == ROWS
    assert data_format(path) == ".csv"
    for content in (packed[:-9], b"text"):
        cut.write_bytes(content)
        with pytest.raises(RequestError, match=re.escape(f"{cut}: cannot be read (")):
            list(read_rows(cut))


def _packed(content: bytes, ending: str) -> bytes:
    if ending != ".zst":
        return bz2.compress(content) if ending == ".bz2" else lzma.compress(content)
    arrow = pytest.importorskip("pyarrow")
    made = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(made, "zstd") as file:
        file.write(content)
    return bytes(made.getvalue())


def test_a_file_that_nothing_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    what = "a.csv.zst: cannot be unpacked here (Python has no module pyarrow) — unpack it first: unzstd "
    with pytest.raises(RequestError, match=re.escape(what)):
        list(read_rows(tmp_path / "a.csv.zst"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_encodings_with_a_mark(tmp_path: Path, encoding: str) -> None:
    """Excel's "Unicode text" is UTF-16 with tabs."""
    path = tmp_path / "a.tsv"
    path.write_text('text\ttask\na "ö"\tt\n', encoding=encoding)
    assert list(read_rows(path)) == [(f"{path}:2", {"text": 'a "ö"', "task": "t"})]


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_a_line_before_the_header_tells_what_is_between_cells(tmp_path: Path, name: str, mark: str) -> None:
    path = tmp_path / name
    path.write_text(f'\ufeff"sep={mark}"\r\ntext, or "question"{mark}task\r\na{mark}t\r\n')
    assert list(read_rows(path)) == [(f"{path}:3", {'text, or "question"': "a", "task": "t"})]


def test_cells_of_any_length(tmp_path: Path) -> None:
    """The longest that `csv` reads is a number of the process, and stays what it was."""
    path, limit = tmp_path / "a.csv", csv.field_size_limit()
    path.write_text(f"text\n{'x' * (limit + 1)}\ny\n")
    rows = read_rows(path)
    assert len(next(rows)[1]["text"]) == limit + 1
    assert csv.field_size_limit() == limit
    assert [row["text"] for _, row in rows] == ["y"]


def test_where_rows_stand(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text(FILES[name], newline="")
    places = {name: [where for where, _ in read_rows(tmp_path / name)] for name in FILES}
    assert places["a.jsonl"] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]
    assert places["a.json"] == [f"{tmp_path}/a.json, element 1", f"{tmp_path}/a.json, element 2"]
    assert places["a.csv"] == [f"{tmp_path}/a.csv:2", f"{tmp_path}/a.csv:3"]


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\ufeffa  b \n\n\tc\u2028d\r\ne")
    assert [row["text"] for _, row in read_rows(path)] == ["a  b", "c\u2028d", "e"]


def test_a_cell_may_have_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"a\nb"\nc,\n')
    assert list(read_rows(path)) == [(f"{path}:3", {"text": "a\nb"}), (f"{path}:4", {"text": "c"})]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("text,task\na,b\nyes, but,c\n", "a.csv:3: has 3 cells, and the header 2 — put texts that hold ','"),
        ('text\na\n"b\nc\n', r"a.csv:3: is no table (unexpected end of data) — a text between double quotes"),
        ('text\n"a" b\n', "a.csv:2: is no table (',' expected after '\"')"),
    ],
)
def test_no_text_of_a_table_is_cut_or_runs_on(tmp_path: Path, text: str, told: str) -> None:
    """A comma in a text that is not quoted, and a quotation mark that is not closed."""
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(RequestError, match=re.escape(told)):
        list(read_rows(path))


GLUE = ['"A" is a letter.', 'He said "yes', '"Why?" he asked.', 'a "b" c', '"']


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([f"{text}\tt" for text in GLUE], GLUE),
        (['"a\tb"\tt', '"c ""d"""\tt', '"e\nf"\tt'], ["a\tb", 'c "d"', "e\nf"]),
        (['"a" b\t"t"', '"c\td"'], ['"a" b', '"c']),
        (['"a"\tt', "b\tt"], ["a", "b"]),
        (["a\tt", '"b"', '"c"\tt'], ["a", "b", "c"]),
    ],
    ids=["as GLUE", "as pandas", "cells of one row", "both", "rows without all cells"],
)
def test_quotes_of_a_tsv_have_the_meaning_that_all_rows_allow(
    tmp_path: Path, rows: list[str], told: list[str]
) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(["text\ttask", *rows]))
    assert [row["text"] for _, row in read_rows(path)] == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('text\na\n"b\nc"\n', "a.tsv:3: a double quote begins here that a later line ends"),
        (
            'text\ttask\n"a" b\tc\nd\te\tf\n',
            "a.tsv:2: is no table ('\t' expected after '\"') — a text between double quotes ends with one,",
        ),
        ('text\ttask\n"a" b\tc\nd\te\tf\n', "a.tsv:3 has 3 cells, and the header 2"),
        ('"text"\t"task"\n"a" b\tc\n', "a.tsv:1 has names of columns between double quotes"),
    ],
)
def test_a_tsv_that_may_be_read_in_two_ways_or_in_none(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(text)
    with pytest.raises(RequestError, match=re.escape(told)):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("rows", "passes"),
    [(["a\tt", "b\tt"], 1), (['"a"\tt', '"b ""c"""\tt'], 2), ([f"{text}\tt" for text in GLUE], 3)],
)
def test_how_often_a_tsv_is_parsed(
    tmp_path: Path, rows: list[str], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once more where it has quotes that have a meaning, as a rule, and twice where they have none."""
    readers: list[object] = []
    reader = csv.reader

    def counted(*args: Any, **how: Any) -> Any:
        readers.append(how)
        return reader(*args, **how)

    monkeypatch.setattr("csv.reader", counted)
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(["text\ttask", *rows]))
    assert len(list(read_rows(path))) == len(rows)
    assert len(readers) == passes


def test_an_error_of_a_table_is_told_behind_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\na\n\n\n"b\nc\n')
    with pytest.raises(RequestError, match=re.escape("a.csv:5: is no table (unexpected end of data)")):
        list(read_rows(path))


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_cells_are_told_apart_by_what_the_header_has(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"\ufefftext{mark}task\na. b{mark}t\n")
    assert [row for _, row in read_rows(path)] == [{"text": "a. b", "task": "t"}]


def test_names_of_columns_are_as_they_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(" text , task,,\na,b,,\n")
    assert [row for _, row in read_rows(tmp_path / "a.csv")] == [{"text": "a", "task": "b", "": ""}]
    (tmp_path / "a.csv").write_text("text,label,text\na,b,c\n")
    with pytest.raises(RequestError, match=r"a.csv:1: there are two columns text — rename one of them"):
        list(read_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["A.JSONL", "A.CSV", "A.Jsonl.GZ"])
def test_endings_in_capitals(tmp_path: Path, name: str) -> None:
    content = b"text\na\n" if ".CSV" in name else b'{"text": "a"}'
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith("GZ") else content)
    assert [row for _, row in read_rows(tmp_path / name)] == [{"text": "a"}]


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3\n')
    with pytest.raises(
        RequestError, match=re.escape("a.jsonl:2: is no JSON (Expecting ',' delimiter: line 1 col")
    ):
        list(read_rows(path))


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text"\n')
    rows = read_rows(path)
    assert next(rows) == (f"{path}:1", {"text": "a"})
    with pytest.raises(RequestError, match=r"a.jsonl:2: is no JSON"):
        next(rows)


def test_images_of_a_folder_by_their_paths(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    write_images(tmp_path, "b/2.png", "b/10.JPEG", "a.webp", "c.bmp")
    write_images(tmp_path, ".thumbnails/a.png", "b/.ipynb_checkpoints/2.png")
    for name in ("labels.csv", "b/._2.png"):
        (tmp_path / name).touch()
    names = [row["image"] for _, row in folder_rows(tmp_path)]
    assert names == ["a.webp", "b/10.JPEG", "b/2.png", "c.bmp"]


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no images in the folder; it has nothing — name a file, a folder"):
        list(folder_rows(tmp_path))
    for name in "edcbaf":
        (tmp_path / f"{name}.csv").touch()
    with pytest.raises(RequestError, match=r"it has a.csv, b.csv, c.csv, d.csv, e.csv and 1 more"):
        list(folder_rows(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.jsonl", None, "nothing.jsonl: cannot be read (No such file or directory) — check the path"),
        ("nothing", None, "nothing: cannot be read (No such file or directory)"),
        ("a.jsonl", b"\xfc\xfe", "a.jsonl:1: cannot be read (not UTF-8) — save it as UTF-8"),
        ("a.txt.gz", gzip.compress(b"a\n\nb\xe9\n", mtime=0), "a.txt.gz:3: cannot be read (not UTF-8)"),
        ("a.txt", b"\xff\xfea\0b", "a.txt: cannot be read (not UTF-16-LE) — save it as UTF-8"),
        (
            "a.txt",
            b"a\0b\0",
            "a.txt: cannot be read (it has zero bytes, as UTF-16 without a mark at its start",
        ),
        ("a.txt", "a\tb\n".encode("utf-16"), "a.txt:1: is a table with tabs, as Excel saves Unicode text"),
        ("a.xlsx", b"PK", "a.xlsx: is no kind of file that is read — save its sheet as .csv"),
        ("a.tar.gz", b"", "a.tar.gz: is no kind of file that is read — unpack it, and name what is in it"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: is no JSON (maximum recursion depth"),
        ("a.jsonl.gz", b"text", "a.jsonl.gz: cannot be read (Not a gzipped file"),
        ("a.txt.gz", CUT, "a.txt.gz: cannot be read (Compressed file ended"),
        (
            "a.json",
            b"[1",
            "a.json: is no JSON (Expecting ',' delimiter: line 1 column 3 (char 2)) — one",
        ),
        (
            "a.xml",
            b"",
            "a.xml: is no kind of file that is read — .jsonl, .json, .csv, .tsv, .txt, these",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError) as error:
        list(read_rows(tmp_path / name))
    assert message in str(error.value)


def test_recipes_know_the_formats() -> None:
    assert {*FORMATS, ".parquet", ".arrow"} == set(DATA_FORMATS)
