"""What a user names as data: a path or a name, and which part of it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from os.path import expanduser
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from submerge.arguments import is_count
from submerge.errors import Problem, RequestError, did_you_mean, few

__all__ = [
    "COLUMNS",
    "DATA_FORMATS",
    "PACKINGS",
    "DataSource",
    "DataSpec",
    "data_files",
    "data_format",
    "data_spec",
    "problems_of_data",
]

DataSource: TypeAlias = str | Path | Mapping[str, Any]
"""A path or the name of a data set, or these as `path` beside what else `DataSpec` has."""

COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("text", "prompt"),
        "text_pair": ("text_pair",),
        "image": ("image", "images"),
        "messages": ("messages", "conversations"),
        "task": ("task",),
        "system": ("system",),
        "tools": ("tools",),
    }
)
"""What is read of a row, and the columns in which it is looked for."""

DATA_FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
"""The endings of files that are read. All but the last two may be packed, with one of `PACKINGS` after it."""

PACKINGS = (".gz", ".bz2", ".xz", ".zst")
"""The endings of packed files."""


@dataclass(frozen=True)
class DataSpec:
    """A path or a name, with the part of it that is read.

    Args:
        path: a file, a folder, or the name of a data set of the Hub.
        name: which configuration of a data set, such as `mnli` of `glue`.
        split: which split of a data set.
        columns: our names of columns (`COLUMNS`) → those of the data; by default as `COLUMNS` has them.
        limit: how many rows are read; by default all.
    """

    path: str
    name: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None


def data_spec(source: DataSource) -> DataSpec:
    """Return a source with its defaults; raises `RequestError` for keys or values that there are not."""
    if not isinstance(source, Mapping):
        return DataSpec(str(expanduser(source)))
    if problems := [Problem(what, "data", hint) for _, what, hint in problems_of_data(source)]:
        raise RequestError(problems)
    given = {key: value for key, value in source.items() if value is not None}
    return DataSpec(**{**given, "path": str(expanduser(given["path"]))})


def data_files(source: DataSource) -> list[Path]:
    """Return the files that data has here: the file itself, or all of a folder but hidden ones, sorted.

    A name of the Hub has none.
    """
    path = Path(data_spec(source).path)
    if path.is_file():
        return [path]
    inner = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else ()
    return sorted(f for f in inner if not any(part.startswith(".") for part in f.relative_to(path).parts))


def problems_of_data(source: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the key, what is wrong, and what to do, for all that is wrong with a source."""
    keys = [key.name for key in fields(DataSpec)]
    for key in source:
        if key not in keys:
            hint = did_you_mean(str(key), keys, f"there are {few(keys, 9)}")
            yield key, f"unknown key '{key}'", hint
    for key, (is_right, what, hint) in _CHECKS.items():
        if (value := source.get(key)) is not None and not is_right(value):
            yield key, f"{key} is {value!r:.60}, not {what}", hint
    if source.get("path") is None:
        yield "path", "there is no path", "path: inputs.jsonl"


def data_format(path: Path) -> str:
    """Return the ending that says how a file is read, in small letters: that before one of a packed file."""
    return (path.with_suffix("") if path.suffix.lower() in PACKINGS else path).suffix.lower()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_columns(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) <= set(COLUMNS) and all(map(_is_text, value.values()))


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str, str]] = {
    "path": (lambda value: isinstance(value, Path) or _is_text(value), "a path", "path: inputs.jsonl"),
    "name": (_is_text, "a name", "name: mnli"),
    "split": (_is_text, "the name of a split", "split: validation"),
    "columns": (_are_columns, f"names for some of {', '.join(COLUMNS)}", "columns: {text: question}"),
    "limit": (is_count, "a number of rows", "limit: 256"),
}
"""What each key's value is: how that is seen, in words, and an example."""
