"""What an entry of `models` says of the inputs from which its coefficients are learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from submerge.methods import Method
from submerge.recipe._problems import KeyPath, Report, show

__all__ = ["DataSource", "read_data_source"]

DataSource: TypeAlias = "str | Mapping[str, Any]"
"""A path or the name of a data set, alone or as `path` beside `name`, `split`, `columns` and `limit`."""

KEYS = ("path", "name", "split", "columns", "limit")
FILES = (".jsonl", ".json", ".csv", ".tsv")
"""Suffixes by which a name that is not there is known for a path."""


def read_data_source(raw: Any, path: KeyPath, method: Method | None, report: Report) -> DataSource | None:
    """Return the `data` of an entry; None where there is none, or on a problem, which is noted."""
    if raw is None:
        return None
    if method is not None and method.calibration is None:
        hint = "calibrate a recipe with 'merge_method: nsc', and give its file here as 'coefficients: …'"
        report.add(f"{method.name} learns nothing from data", path, hint)
        return None
    if isinstance(raw, str):
        return raw if _names_something(raw, path, report) else None
    if not isinstance(raw, dict):
        hint = "write 'data: inputs.jsonl', or {path: …, split: …, columns: …, limit: …}"
        report.add(f"data is a path or a mapping, not {show(raw)}", path, hint)
        return None
    for key in raw:
        if key not in KEYS:
            report.unknown("key", key, KEYS, (*path, key))
    if not isinstance(raw.get("path"), str):
        report.add("data written as a mapping needs a 'path'", path, "add 'path: …'")
        return None
    sound = [_names_something(raw["path"], (*path, "path"), report), *_check_parts(raw, path, report)]
    return {key: raw[key] for key in KEYS if raw.get(key) is not None} if all(sound) else None


def _names_something(name: str, path: KeyPath, report: Report) -> bool:
    """Return whether a name is a path that is there, or may be that of a data set; note it else."""
    place = Path(name).expanduser()
    try:
        if not name.strip() or (not place.exists() and _reads_as_path(name)):
            report.add(
                f"there is no such file or folder: {show(name)}", path, "paths start at the current folder"
            )
            return False
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        report.add(f"{show(name)} can be no path ({error})", path, "check the path")
        return False
    return True


def _reads_as_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(("/", *FILES))


def _check_parts(raw: dict[str, Any], path: KeyPath, report: Report) -> list[bool]:
    """Return whether each of the other keys holds what it should; what does not is noted."""
    name, split, columns, limit = (raw.get(key) for key in KEYS[1:])
    checks = {
        "name": (name is None or isinstance(name, str), name, "text", "such as mnli"),
        "split": (split is None or isinstance(split, str), split, "text", "such as validation"),
        "columns": (
            columns is None or _is_text_by_text(columns),
            columns,
            "a mapping of names",
            "such as {text: question}",
        ),
        "limit": (limit is None or _is_count(limit), limit, "a positive whole number", "such as 64"),
    }
    for key, (sound, value, kind, hint) in checks.items():
        if not sound:
            report.add(f"{key} is {kind}, not {show(value)}", (*path, key), hint)
    return [sound for sound, *_ in checks.values()]


def _is_text_by_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
