"""Files of text as they are stored: packed or not, and in UTF-8 or in the UTF-16 that Excel writes."""

from __future__ import annotations

import codecs
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TextIO, cast

from submerge.errors import Problem, RequestError

__all__ = ["open_text", "readable"]

_PACKED = {
    ".gz": ("gzip", "gunzip"),
    ".bz2": ("bz2", "bunzip2"),
    ".xz": ("lzma", "unxz"),
    ".zst": ("pyarrow", "unzstd"),
}
"""By the ending the module that unpacks a file, and the program that does so outside of Python."""
_WIDE = {
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # first: one of them begins as one of the others
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
"""The marks with which other files than those of UTF-8 begin."""
_HEAD = 64
_AS_UTF8 = "save it as UTF-8"


def open_text(path: Path) -> TextIO:
    """Return a file as text, whose lines end as they end there: a cell of a table may hold several.

    Raises `RequestError` where nothing here unpacks it, or its bytes are those of no text.
    """
    file = _unpacked(path)
    try:
        head = file.read(_HEAD)
        file.seek(0)
        return io.TextIOWrapper(cast("IO[bytes]", file), encoding=_encoding(head, path), newline="")
    except BaseException:
        file.close()
        raise


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say of what a file's reading raises which file it is."""
    try:
        yield
    except UnicodeDecodeError as error:
        name = "UTF-8" if error.encoding == "utf-8" else error.encoding.upper()
        place = f"{path}:{_first_wrong_line(path)}" if name == "UTF-8" else str(path)
        raise RequestError(Problem(f"cannot be read (not {name})", place, _AS_UTF8)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    except Exception as error:
        if type(error).__name__ != "LZMAError":  # its module may be missing, and it has no other base
            raise
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> RequestError:
    return RequestError(Problem(f"cannot be read ({reason})", str(path), "check the path"))


def _unpacked(path: Path) -> Any:
    """Return the bytes of a file before it was packed, which can be read again from the start."""
    if (packed := _PACKED.get(path.suffix.lower())) is None:
        return path.open("rb")
    name, program = packed
    try:
        module: Any = import_module(name)
    except ImportError as error:
        what = f"cannot be unpacked here (Python has no module {name})"
        raise RequestError(Problem(what, str(path), f"unpack it first: {program} {path}")) from error
    if name != "pyarrow":
        return module.open(path, "rb")
    with path.open("rb") as file, module.input_stream(file, compression="zstd") as stream:
        return io.BytesIO(stream.read())  # it cannot be read again, as tables are


def _encoding(head: bytes, path: Path) -> str:
    """Return in which encoding a file is that begins so."""
    for encoding, marks in _WIDE.items():
        if head.startswith(marks):
            return encoding
    if b"\0" in head:  # which UTF-8 would take for a character
        what = "cannot be read (it has zero bytes, as UTF-16 without a mark at its start does)"
        raise RequestError(Problem(what, str(path), _AS_UTF8))
    return "utf-8-sig"


def _first_wrong_line(path: Path) -> int:
    """Return the number of the first line of a file that is not UTF-8."""
    with _unpacked(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
