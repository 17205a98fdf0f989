"""Where a recipe comes from: a file, YAML text, or a mapping; as plain data."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from submerge.errors import Problem, RequestError
from submerge.recipe._problems import KeyPath, Report, show
from submerge.recipe._yaml import MAX_BITS, MAX_BYTES, MAX_DEPTH, Document, parse_documents

__all__ = ["RecipeSource", "check_mapping", "open_documents", "open_source", "read_text"]


@dataclass(frozen=True)
class RecipeSource:
    """A recipe's plain data, the report that knows its lines, and where it came from."""

    data: Any
    report: Report
    path: Path | None
    text: str


def open_source(source: str | Path | Mapping[str, Any], *, lenient: bool = False) -> RecipeSource:
    """Return the data of a recipe file (a path), of YAML text (a str with a line end), or of a mapping.

    As `open_documents`; a second document that holds something is noted as a problem.
    """
    opened, *others = open_documents(source, lenient=lenient)
    if others:
        line = others[0].report.line(()) or 1
        hint = "a recipe is one document here; `submerge merge` takes several, with mixtures among them"
        opened.report.add_at("a second document starts here", line, hint)
    return opened


def open_documents(source: str | Path | Mapping[str, Any], *, lenient: bool = False) -> list[RecipeSource]:
    """Return the data of each document of a file or a text, but for empty ones beside others."""
    if isinstance(source, Mapping):
        return [_from_mapping(source, lenient=lenient)]
    text, name, path = _text(source)
    documents = parse_documents(text, name, lenient=lenient)
    documents = [document for document in documents if not _is_empty(document)] or documents[:1]
    return [RecipeSource(document.data, document.report, path, text) for document in documents]


def _is_empty(document: Document) -> bool:
    """Return whether nothing stands in a document, not even what cannot be read."""
    return document.data is None and not document.report.problems


def check_mapping(opened: RecipeSource, first: str) -> None:
    """Raise `RequestError` where a recipe is no mapping, with what was noted while it was read.

    `first` is the key that it is to begin with.
    """
    data, report = opened.data, opened.report
    if isinstance(data, dict):
        return
    if data is not None or not report.problems:
        what = "the recipe is empty" if data is None else f"a recipe is a mapping, not {show(data)}"
        report.add(what, (), f"start with '{first}: …'")
    report.raise_if_any()


def _text(source: str | Path) -> tuple[str, str, Path | None]:
    """Return the text of a recipe, what messages call it, and its path if it is a file."""
    if isinstance(source, str) and "\n" in source:
        return source, "recipe", None
    if not isinstance(source, (str, Path)):
        raise RequestError(f"a recipe is a path, YAML text or a mapping, not {show(source)}")
    path = Path(source)
    return _read(str(source)), path.name, path


def _read(name: str) -> str:
    """Return the text of a file."""
    try:
        if os.path.isdir(name):
            raise RequestError(Problem("this is a folder", name or "recipe", "name the recipe file"))
        with open(name, "rb") as file:
            return read_text(file, name)
    except FileNotFoundError:
        hint = "check the path" if ":" not in name else "YAML text is known by its line ends"
        raise RequestError(Problem("no such file", name, hint)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        where = name if isinstance(error, PermissionError) else show(name)  # which may be text by mistake
        raise RequestError(Problem(f"cannot be read: {reason}", where, "check the path")) from None


def read_text(file: BinaryIO, name: str) -> str:
    """Return the text of an open file; raise `RequestError` if it is too large, or no text.

    `name` is what messages call it.
    """
    raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise RequestError(Problem(f"larger than {MAX_BYTES} bytes", name, "is this a recipe?"))
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        where = f"{Path(name).name}:{line}"
        raise RequestError(Problem("this is not UTF-8 text", where, "is this a recipe?")) from None


def _from_mapping(source: Mapping[str, Any], *, lenient: bool) -> RecipeSource:
    """Return a recipe that was written in Python; its problems have dotted paths for lines."""
    report = Report("recipe", {}, lenient=lenient)
    data = _plain(source, (), report)
    report.raise_if_any()
    return RecipeSource(data, report, None, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def _plain(value: Any, path: KeyPath, report: Report) -> Any:
    """Return Python values as the data that YAML would give: tuples as lists, paths as text."""
    if len(path) > MAX_DEPTH:  # also a list that holds itself
        report.add(f"nested deeper than {MAX_DEPTH} levels", path[:3])
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                report.add(f"keys are text; found {show(key)}", path)
        return {
            str(key): _plain(item, (*path, key), report)
            for key, item in value.items()
            if isinstance(key, str)
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, (*path, i), report) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (str, os.PathLike)) and isinstance(text := os.fspath(value), str):
        return str(text)  # a subclass of str as a plain one
    if isinstance(value, numbers.Real):  # numpy's numbers, too
        return _number(value, path, report)
    kind = type(value).__name__
    report.add(f"a recipe holds text, numbers, lists and mappings, not an object of type {kind}", path)
    return None


def _number(value: numbers.Real, path: KeyPath, report: Report) -> int | float | None:
    """Return an int or a float; None for a number that is too large, which is noted."""
    if isinstance(value, numbers.Integral):
        number = int(value)
        if number.bit_length() <= MAX_BITS:
            return number
        report.add("this number is too long", path)
        return None
    try:
        return float(value)
    except OverflowError:
        report.add("this number is too large", path)
        return None
