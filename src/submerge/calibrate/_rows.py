"""The rows of files and folders, one at a time, each with the place where it stands."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from submerge.errors import Problem, RequestError, few
from submerge.recipe import data_format

__all__ = ["FORMATS", "Row", "Rows", "folder_rows", "read_rows"]

Row: TypeAlias = tuple[str, Any]
"""Where a row stands, such as `inputs.jsonl:3`, and its value: a mapping from columns, if it is right."""

Rows: TypeAlias = Generator[Row, None, None]
"""Whoever does not go through all of them closes them, and with them the file."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def read_rows(path: Path) -> Rows:
    """Yield the rows of a file, as its ending has it; raises `RequestError` with the line that is wrong."""
    with _readable(path), _opened(path) as file:
        read = FORMATS.get(data_format(path))
        if read is None:
            hint = f"{', '.join(FORMATS)}, these with .gz, .parquet, or a folder of images"
            raise RequestError(Problem("is no kind of file that is read", str(path), hint))
        yield from read(file, path)


def folder_rows(folder: Path) -> Rows:
    """Yield the images of a folder and of those in it, sorted by their paths, without hidden ones.

    Hidden folders are left out, too: notebooks and file managers hold copies and thumbnails there.
    """
    images = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
    files = sorted(file for file in images if not _is_hidden(file.relative_to(folder)))
    if not files:
        names = sorted(file.name for file in folder.iterdir())
        what = f"there are no images in the folder; it has {few(names, 5) or 'nothing'}"
        raise RequestError(Problem(what, str(folder), "name a file, or a folder of images"))
    for file in files:
        yield str(file), {"image": file.relative_to(folder).as_posix()}


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of what a file's reading raises which file it is."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise RequestError(Problem("cannot be read (not UTF-8)", str(path), "save it as UTF-8")) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(Problem(f"cannot be read ({reason})", str(path), "check the path")) from error


def _opened(path: Path) -> TextIO:
    """Return a file as text, whose lines end as they end there: a cell of a table may hold several."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(file: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line, f"{path}:{number}", "one object a line")


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


def _table(file: TextIO, path: Path) -> Iterator[Row]:
    """Yield each row of a table with a header, with the number of the line at which it ends."""
    delimiter = _delimiter(file, path)
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        reader.fieldnames = _names(reader.fieldnames or (), path)
        for row in reader:
            if any(beyond := row.pop(None, None) or ()):
                what = f"has {len(row) + len(beyond)} cells, and the header {len(row)}"
                hint = f"put texts that hold {delimiter!r} between double quotes"
                raise RequestError(Problem(what, f"{path}:{reader.line_num}", hint))
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        hint = 'a text between double quotes ends with one, and those within it are doubled: ""'
        if "field limit" in str(error):
            hint = "write texts of such a length as .jsonl, or cut them; or a double quote has no end"
        line = reader.line_num + 1  # behind the last row that was read
        raise RequestError(Problem(f"is no table ({error})", f"{path}:{line}", hint)) from error


def _names(header: Sequence[str], path: Path) -> list[str]:
    """Return the names of a table's columns; of two columns of one name the second would be read alone."""
    names = [name.strip() for name in header]
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise RequestError(Problem(f"there are two columns {few(twice)}", f"{path}:1", "rename one of them"))
    return names


def _delimiter(file: TextIO, path: Path) -> str:
    """Return what stands between the cells of a table: spreadsheets write semicolons in many languages."""
    header = file.readline()
    file.seek(0)
    if data_format(path) == ".tsv":
        return "\t"
    return next((mark for mark in ",;\t" if mark in header), ",")


def _text_lines(file: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}:{number}", {"text": line.strip()}


FORMATS: dict[str, Callable[[TextIO, Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _text_lines,
}
