"""The rows of files and folders, one at a time, each with the place where it stands."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from submerge.calibrate._tables import read_tabbed_table, read_table
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
            hint = f"{', '.join(FORMATS)}, these with .gz, .parquet, .arrow, or a folder of images"
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
        hint = "name a file, a folder of images, or with split a folder that datasets reads"
        raise RequestError(Problem(what, str(folder), hint))
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
        place = f"{path}:{_first_wrong_line(path)}"
        raise RequestError(Problem("cannot be read (not UTF-8)", place, "save it as UTF-8")) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(Problem(f"cannot be read ({reason})", str(path), "check the path")) from error


def _first_wrong_line(path: Path) -> int:
    """Return the number of the first line of a file that is not UTF-8."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _opened(path: Path) -> TextIO:
    """Return a file as text, whose lines end as they end there: a cell of a table may hold several."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


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
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}:{number}", {"text": line.strip()}


FORMATS: dict[str, Callable[[TextIO, Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": read_table,
    ".tsv": read_tabbed_table,
    ".txt": _text_lines,
}
