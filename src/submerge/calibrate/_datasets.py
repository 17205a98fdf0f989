"""Rows of the package `datasets`: folders that it saved, parquet files, and names of the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.calibrate._rows import Rows
from submerge.deferred import required
from submerge.errors import Problem, RequestError, few, first_line
from submerge.recipe import DATA_FORMATS, DataSpec, data_format

__all__ = ["StoredImage", "check_no_split", "dataset_rows", "is_dataset"]

_PARQUET, _ARROW = ".parquet", ".arrow"
_SAVED = ("state.json", "dataset_dict.json")
"""One of them lies in each folder of `save_to_disk`."""
_HUB_NAME = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")
_BATCH = 64


@dataclass(frozen=True)
class StoredImage:
    """An image in a column of a data set, which is read when it is asked for."""

    rows: Any
    number: int
    column: str
    place: int | None = None
    """Which of the images of a list."""
    file: Path | None = None
    """Where it lies, if the data set holds its path alone."""

    def __str__(self) -> str:
        place = "" if self.place is None else f"[{self.place}]"
        return f"row {self.number + 1}, {self.column}{place}"

    def read(self) -> bytes:
        """Return what the image's file holds."""
        if self.file is not None:
            return self.file.read_bytes()
        value = self.rows[self.number].column(self.column)[0].as_py()
        held: bytes = (value if self.place is None else value[self.place])["bytes"]
        return held


def is_dataset(spec: DataSpec) -> bool:
    """Return whether `datasets` is to open it.

    That is a folder that it saved, one of which a split is named, a parquet or arrow file, or a name that is
    no path.
    """
    path = Path(spec.path)
    if path.is_file():
        return path.suffix.lower() in (_PARQUET, _ARROW)
    named = bool(spec.name or spec.split)
    if path.exists():
        return named or _is_saved(path)
    if not _HUB_NAME.fullmatch(spec.path) or data_format(path) in DATA_FORMATS:
        return False
    return named or ("/" in spec.path and not path.parent.exists())


def _is_saved(path: Path) -> bool:
    return any((path / name).exists() for name in _SAVED)


def dataset_rows(spec: DataSpec) -> Rows:
    """Yield the rows of a data set, with images as `StoredImage`.

    Raises `RequestError` where the package is missing, or there is no such data set or split.
    """
    datasets = required("datasets", f"{spec.path} needs")
    try:
        dataset = _opened(datasets, spec)
    except (OSError, ValueError) as error:
        what = f"datasets cannot open it ({first_line(error)})"
        raise RequestError(Problem(what, spec.path, "check the path or the name")) from error
    rows = dataset.with_format("arrow")  # as they are stored: images are not decoded
    number = 0
    for table in rows.iter(batch_size=_BATCH):
        for row in table.to_pylist():
            value = {column: _referred(value, rows, number, column) for column, value in row.items()}
            number += 1
            yield f"{spec.path}, row {number}", value


def _opened(datasets: Any, spec: DataSpec) -> Any:
    """Return one split."""
    path = Path(spec.path)
    if path.is_file():
        check_no_split(spec)
        if path.suffix.lower() == _ARROW:
            return datasets.Dataset.from_file(str(path))
        return datasets.Dataset(required("pyarrow.parquet", f"{spec.path} needs").read_table(path))
    if _is_saved(path):
        saved = datasets.load_from_disk(spec.path)
        if isinstance(saved, dict):
            return saved[_chosen(spec, list(saved))]
        check_no_split(spec)
        return saved
    split = spec.split or _chosen(spec, datasets.get_dataset_split_names(spec.path, spec.name))
    return datasets.load_dataset(spec.path, spec.name, split=split)


def check_no_split(spec: DataSpec) -> None:
    """Raise `RequestError` where a split is named of data that has none."""
    if spec.split or spec.name:
        raise RequestError(Problem("has no splits and no names", spec.path, "leave split and name out"))


def _chosen(spec: DataSpec, splits: list[str]) -> str:
    """Return the split that is asked for, or the only one."""
    split = splits[0] if spec.split is None and len(splits) == 1 else spec.split
    if split not in splits:
        what = f"there is no split {split}" if split else "there are several splits"
        raise RequestError(Problem(what, spec.path, f"name one with split: {few(splits, 9)}"))
    return split


def _referred(value: Any, rows: Any, number: int, column: str) -> Any:
    """Return a cell with references for its images."""

    def referred(one: Any, place: int | None = None) -> Any:
        if not _is_image(one):
            return one
        if not one["bytes"] and not one["path"]:
            return None
        return StoredImage(rows, number, column, place, None if one["bytes"] else Path(one["path"]))

    return [referred(one, at) for at, one in enumerate(value)] if isinstance(value, list) else referred(value)


def _is_image(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}
