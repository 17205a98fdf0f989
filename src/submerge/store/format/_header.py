"""The header of a safetensors file: parsed here, and checked in every field before anything rests on it.

Layout: 8 bytes little-endian N, N bytes of JSON, then the data. The JSON maps a tensor's name to
`{"dtype", "shape", "data_offsets": [begin, end]}` with offsets relative to the data; `__metadata__`
maps text to text. Tensors cover the data without hole or overlap.
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.format._dtypes import DTYPES
from submerge.store.format._json import strict_json

__all__ = ["MAX_HEADER", "Header", "TensorEntry", "read_header"]

MAX_HEADER = 100_000_000  # the library's own limit
_MAX_PROBLEMS = 20
_MAX_DIMS = 64  # torch's own limit
_AGAIN = "the file is damaged: copy or download it again"
_SIGNATURES = (
    (b"GGUF", "is a GGUF file", "Submerge reads safetensors: give the unquantised original checkpoint"),
    (
        b"PK\x03\x04",
        "is a PyTorch pickle archive under another name",
        "convert it: safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)",
    ),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the weights",
        "run `git lfs pull` in that folder, or use `hf download`",
    ),
)


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
    raw, size = _header_bytes(path)
    try:
        table = strict_json(raw)
    except ValueError as error:
        raise _refusal(path, f"the header is not valid JSON ({_short(error)})") from None
    if not isinstance(table, dict):
        raise _refusal(path, "the header is not a JSON object")
    problems: list[Problem] = []
    metadata = _metadata(path, table.pop("__metadata__", None), problems)
    start = 8 + len(raw)
    entries = [
        entry
        for name, record in table.items()
        if (entry := _entry(path, name, record, start, size, problems)) is not None
    ]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    if not problems:  # a wrong entry would only echo here as a hole
        problems = _cover(path, entries, start, size)
    if problems:
        rest = len(problems) - _MAX_PROBLEMS
        more = [Problem(f"and {rest} more problems of this kind", str(path))] if rest > 0 else []
        raise RequestError(problems[:_MAX_PROBLEMS] + more)
    return Header({entry.name: entry for entry in entries}, metadata, size)


def _refusal(path: Path, what: str, hint: str = _AGAIN) -> RequestError:
    return RequestError(Problem(what, str(path), hint))


def _short(error: object) -> str:
    text = str(error)
    return text if len(text) <= 200 else text[:200] + "…"


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """Return the raw JSON and the size of the file."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe would wait for ever
            raise _refusal(path, "is not a regular file", "name a safetensors file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = _header_length(path, file.read(24), size)
            file.seek(8)
            raw = file.read(length)
    except IsADirectoryError:
        raise _refusal(path, "is a folder where a file is expected", "name the file inside it") from None
    except FileNotFoundError:
        raise _refusal(path, "does not exist", "check the path") from None
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})", "check the permissions") from None
    if len(raw) != length:
        raise _refusal(path, "shrank while its header was read")
    if not raw.startswith(b"{"):
        raise _refusal(path, "the header is not valid JSON (it does not start with '{')")
    return raw, size


def _header_length(path: Path, beginning: bytes, size: int) -> int:
    """Return how many bytes of JSON a file declares, by its first bytes and its size."""
    for signature, what, hint in _SIGNATURES:
        if beginning.startswith(signature):
            raise _refusal(path, what, hint)
    if size == 0:
        raise _refusal(path, "is empty")
    if size < 8:
        raise _refusal(path, f"has {size} bytes, too few for a safetensors header")
    (length,) = struct.unpack("<Q", beginning[:8])
    declared = f"declares a header of {length} bytes"
    if length > MAX_HEADER:
        hint = "this is not a safetensors file, or it is damaged"
        raise _refusal(path, f"{declared} (the limit is {MAX_HEADER})", hint)
    if 8 + length > size:
        raise _refusal(path, f"{declared} but the whole file has {size}: it is truncated")
    return int(length)


def _metadata(path: Path, table: Any, problems: list[Problem]) -> dict[str, str]:
    if table is None:
        return {}
    if not isinstance(table, dict) or not all(_is_text(value) for value in table.values()):
        problems.append(Problem("__metadata__ must map text to text", str(path), _AGAIN))
        return {}
    return table


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _are_counts(values: list[Any]) -> bool:
    for value in values:  # noqa: SIM110 — twice as fast, and an expert model has 10⁵ of these lists
        if type(value) is not int or not 0 <= value < 2**63:  # `type`, since True is an int to isinstance
            return False
    return True


def _entry(
    path: Path, name: str, record: Any, start: int, size: int, problems: list[Problem]
) -> TensorEntry | None:
    """Return the entry that a record describes, or None after adding what is wrong with it."""
    fault = _fault(record, start, size)
    if fault is not None:
        hint = _AGAIN
        if fault.startswith("unknown dtype"):
            hint = "update Submerge, or convert the tensor to one of F32, F16, BF16"
        problems.append(Problem(_short(fault), f"{path}, tensor {_short(name)}", hint))
        return None
    begin, end = record["data_offsets"]
    return TensorEntry(name, record["dtype"], tuple(record["shape"]), path, start + begin, end - begin)


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


def _cover(path: Path, entries: list[TensorEntry], start: int, size: int) -> list[Problem]:
    """Return the overlaps and holes between tensors, and bytes after the last one."""
    problems = []
    position = start
    for entry in entries:
        if entry.offset != position:
            what = "overlaps the tensor before it" if entry.offset < position else "leaves a hole before it"
            where = f"{path}, tensor {_short(entry.name)}"
            problems.append(
                Problem(f"{what} (begins at byte {entry.offset}, expected {position})", where, _AGAIN)
            )
        position = max(position, entry.offset + entry.nbytes)
    if position != size:
        problems.append(
            Problem(
                f"has {size - position} bytes after the last tensor that the header declares",
                str(path),
                _AGAIN,
            )
        )
    return problems
