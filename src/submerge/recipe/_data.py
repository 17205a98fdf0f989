"""What an entry of `models` says of the inputs from which its coefficients are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submerge.methods import Method, methods_with
from submerge.recipe._data_spec import DATA_FORMATS, DataSource, data_format, problems_of_data
from submerge.recipe._problems import KeyPath, Report, show

__all__ = ["read_data_source"]


def read_data_source(
    raw: Any, path: KeyPath, method: Method | None, report: Report, *, mixes: bool = False
) -> DataSource | None:
    """Return the `data` of an entry; None where there is none, or on a problem, which is noted.

    `mixes` says that prototypes are made of it, by which projectors are mixed, whatever the method is.
    """
    if raw is None:
        return None
    if not (mixes or method is None or method.calibration or method.moments):
        learns = methods_with(lambda m: m.calibration)
        hint = (
            f"calibrate a recipe with 'merge_method: {learns}', and give its file here as 'coefficients: …'"
        )
        hint += "; or leave data out, which mixes projectors where 'projectors: mixed' asks for it"
        report.add_ignored(f"{method.name} learns nothing from data", path, hint)
        return None
    if isinstance(raw, str):
        return raw if _names_something(raw, path, report) else None
    if not isinstance(raw, dict):
        hint = "write 'data: inputs.jsonl', or {path: …, split: …, columns: …, limit: …}"
        report.add(f"data is a path or a mapping, not {show(raw)}", path, hint)
        return None
    problems = list(problems_of_data(raw))
    for key, what, hint in problems:
        report.add(what, (*path, key) if key in raw else path, hint)
    if problems or not _names_something(raw["path"], (*path, "path"), report):
        return None
    return {key: value for key, value in raw.items() if value is not None}


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
    return name.startswith((".", "/", "~")) or name.endswith("/") or data_format(Path(name)) in DATA_FORMATS
