"""The rows of files and folders, one at a time, each with the place where it stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from submerge.calibrate._tables import read_tabbed_table, read_table
from submerge.calibrate._text_files import open_text, readable
from submerge.errors import Problem, RequestError, few
from submerge.recipe import PACKINGS, data_format

__all__ = ["FORMATS", "Row", "Rows", "folder_rows", "read_rows"]

Row: TypeAlias = tuple[str, Any]
"""Where a row stands, such as `inputs.jsonl:3`, and its value: a mapping from columns, if it is right."""

Rows: TypeAlias = Generator[Row, None, None]
"""Whoever does not go through all of them closes them, and with them the file."""

_SPREADSHEETS = (".xlsx", ".xls", ".ods")
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".lzma")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def read_rows(path: Path) -> Rows:
    """Yield the rows of a file, as its ending has it; raises `RequestError` with the line that is wrong."""
    with readable(path):
        read = FORMATS.get(data_format(path))
        if read is None:
            path.stat()  # of one that is not there this is said
            raise RequestError(Problem("is no kind of file that is read", str(path), _hint_of_kinds(path)))
        with open_text(path) as file:
            yield from read(file, path)


def _hint_of_kinds(path: Path) -> str:
    """Return what to do about a file of another kind than those that are read."""
    if path.suffix.lower() in _SPREADSHEETS:
        return "save its sheet as .csv"
    if path.suffix.lower() in _ARCHIVES or data_format(path) == ".tar":
        return "unpack it, and name what is in it"
    packed = ", ".join(PACKINGS)
    return f"{', '.join(FORMATS)}, these with {packed}, .parquet, .arrow, or a folder of images"


def folder_rows(folder: Path) -> Rows:
    """Yield the images of a folder and of those in it, sorted by their paths, without hidden ones.

    Hidden folders are left out, too: notebooks and file managers hold copies and thumbnails there.
    """
    images = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
    files = sorted(file for file in images if not _is_hidden(file.relative_to(folder)))
    if not files:
        names = sorted(file.name for file in folder.iterdir())
        what = f"there are no images in the folder; it has {few(names, 5) or 'nothing'}"
        hint = "name a file, a folder of images, or with split a folder that datasets reads"
        raise RequestError(Problem(what, str(folder), hint))
    for file in files:
        yield str(file), {"image": file.relative_to(folder).as_posix()}


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _json_lines(file: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line.strip(), f"{path}:{number}", "one object a line")


def _json(file: TextIO, path: Path) -> Iterator[Row]:
    """Yield the elements of an array, or what the lines hold where there is none."""
    head = file.read(1)
    while head.isspace():
        head = file.read(1)
    file.seek(0)
    if head != "[":
        yield from _json_lines(file, path)
        return
    values = _parsed(file.read(), str(path), "one array of objects")
    yield from ((f"{path}, element {number}", value) for number, value in enumerate(values, 1))


def _parsed(text: str, where: str, hint: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(Problem(f"is no JSON ({error})", where, hint)) from error


def _text_lines(file: TextIO, path: Path) -> Iterator[Row]:
    """Yield each line; raises `RequestError` for Excel's "Unicode text", of which each would be a row."""
    for number, line in enumerate(file, 1):
        if line.strip():
            if file.encoding == "utf-16" and "\t" in line:
                what = "is a table with tabs, as Excel saves Unicode text, and no text a line"
                raise RequestError(Problem(what, f"{path}:{number}", "name it .tsv"))
            yield f"{path}:{number}", {"text": line.strip()}


FORMATS: dict[str, Callable[[TextIO, Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": read_table,
    ".tsv": read_tabbed_table,
    ".txt": _text_lines,
}
