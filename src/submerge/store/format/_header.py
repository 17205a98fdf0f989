"""The header of a safetensors file: parsed here, and checked in every field before anything rests on it.

The JSON maps a tensor's name to `{"dtype", "shape", "data_offsets": [begin, end]}` with offsets relative to
the data; `__metadata__` maps text to text. Tensors cover the data without hole or overlap.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.format._dtypes import DTYPES
from submerge.store.format._header_json import AGAIN, read_header_json, short

__all__ = ["Header", "TensorEntry", "read_header"]

_MAX_PROBLEMS = 20
_MAX_DIMS = 64  # torch's own limit


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: name, type code, shape, file (None: in memory), absolute offset, bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path | None
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 for types that do not fill whole bytes."""
        return DTYPES[self.dtype].itemsize

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers, which alone are averaged."""
        return DTYPES[self.dtype].kind == "float"

    @classmethod
    def in_memory(cls, name: str, dtype: str, shape: tuple[int, ...]) -> TensorEntry:
        """Return the entry of a tensor that no file has: it is held, or computed when it is read."""
        return cls(name, dtype, shape, None, 0, DTYPES[dtype].nbytes(shape) or 0)


@dataclass(frozen=True, slots=True)
class Header:
    """What one safetensors file declares: its tensors by offset, its metadata, its size in bytes."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    size: int


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file, with tensors in the order in which they lie.

    Raises `RequestError` with every problem found; a header that is returned can be trusted.
    """
    header = read_header_json(path)
    checker = _Checker(path, header.start, header.size)
    metadata = checker.metadata(header.table.pop("__metadata__", None))
    read = (checker.entry(name, record) for name, record in header.table.items())
    entries = sorted((entry for entry in read if entry is not None), key=lambda e: (e.offset, e.nbytes))
    if not checker.problems:  # a wrong entry would only echo here as a hole
        checker.cover(entries)
    if problems := checker.problems:
        rest = len(problems) - _MAX_PROBLEMS
        more = [Problem(f"and {rest} more problems of this kind", str(path))] if rest > 0 else []
        raise RequestError(problems[:_MAX_PROBLEMS] + more)
    return Header({entry.name: entry for entry in entries}, metadata, header.size)


@dataclass
class _Checker:
    """Checks the parts of one file's header, and notes what is wrong; the data are from `start` to `size`."""

    path: Path
    start: int
    size: int
    problems: list[Problem] = field(default_factory=list)

    def metadata(self, table: Any) -> dict[str, str]:
        """Return the metadata; empty where there are none or they are no texts."""
        if table is None:
            return {}
        if not isinstance(table, dict) or not all(_is_text(value) for value in table.values()):
            self.problems.append(Problem("__metadata__ must map text to text", str(self.path), AGAIN))
            return {}
        return table

    def entry(self, name: str, record: Any) -> TensorEntry | None:
        """Return the entry that a record describes, or None after noting what is wrong with it."""
        fault = _fault(record, self.start, self.size)
        if fault is not None:
            hint = AGAIN
            if fault.startswith("unknown dtype"):
                hint = "update Submerge, or convert the tensor to one of F32, F16, BF16"
            self.problems.append(Problem(short(fault), self._of(name), hint))
            return None
        begin, end = record["data_offsets"]
        shape = tuple(record["shape"])
        return TensorEntry(name, record["dtype"], shape, self.path, self.start + begin, end - begin)

    def cover(self, entries: list[TensorEntry]) -> None:
        """Note overlaps and holes between tensors, and bytes after the last one.

        What a header does not account for could be read as the values of a tensor by one program and not by
        another.
        """
        position = self.start
        for entry in entries:
            if entry.offset != position:
                what = (
                    "overlaps the tensor before it" if entry.offset < position else "leaves a hole before it"
                )
                what += f" (begins at byte {entry.offset}, expected {position})"
                self.problems.append(Problem(what, self._of(entry.name), AGAIN))
            position = max(position, entry.offset + entry.nbytes)
        if position != self.size:
            what = f"has {self.size - position} bytes after the last tensor that the header declares"
            self.problems.append(Problem(what, str(self.path), AGAIN))

    def _of(self, name: str) -> str:
        return f"{self.path}, tensor {short(name)}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _are_counts(values: list[Any]) -> bool:
    for value in values:  # noqa: SIM110 — twice as fast, and an expert model has 10⁵ of these lists
        if type(value) is not int or not 0 <= value < 2**63:  # `type`, since True is an int to isinstance
            return False
    return True


def _fault(record: Any, start: int, size: int) -> str | None:
    """Return the first thing that is wrong with a tensor's description, or None."""
    if not isinstance(record, dict):
        return "its description is not an object"
    if set(record) != {"dtype", "shape", "data_offsets"}:
        return (
            f"its description has the fields {reprlib.repr(sorted(record))}, not dtype, shape, data_offsets"
        )
    code, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        return f"unknown dtype {reprlib.repr(code)}"
    if not isinstance(shape, list) or not _are_counts(shape):
        return f"the shape {reprlib.repr(shape)} is not a list of whole numbers ≥ 0"
    if len(shape) > _MAX_DIMS:
        return f"the shape has {len(shape)} dimensions (the limit is {_MAX_DIMS})"
    if not isinstance(offsets, list) or len(offsets) != 2 or not _are_counts(offsets):
        return f"the data_offsets {reprlib.repr(offsets)} are not two whole numbers ≥ 0"
    begin, end = offsets
    if begin > end:
        return f"the data_offsets {offsets} run backwards"
    need = DTYPES[code].nbytes(tuple(shape))
    if need is None or need >= 2**63:
        return f"the shape {reprlib.repr(shape)} of {code} is not a possible number of bytes"
    if need != end - begin:
        text = f"the shape {reprlib.repr(shape)} of {code} needs {need} bytes"
        return f"{text}, but the data_offsets span {end - begin}"
    if start + end > size:
        return f"its data end at byte {start + end}, but the file has {size}: it is truncated"
    return None
