"""The bytes of a safetensors header for tensors in a given order."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from submerge.store.format._dtypes import DTYPES

__all__ = ["TensorSpec", "encode_header"]

TensorSpec: TypeAlias = tuple[str, str, tuple[int, ...]]
"""A tensor that is to be written: its name, its dtype's code, its shape."""


def encode_header(
    entries: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None, room: int = 0
) -> tuple[bytes, dict[str, int]]:
    """Return the header's bytes and each tensor's absolute offset, tensors laid out in the given order.

    The data start at a multiple of 8, by trailing spaces, as the library does, and not before byte `room`.
    The same arguments give the same bytes. Raises `ValueError` for a name twice, a dtype that is unknown, or
    a shape that does not fill whole bytes.
    """
    table: dict[str, object] = {}
    if metadata:
        table["__metadata__"] = dict(metadata)
    relative: dict[str, int] = {}
    position = 0
    for name, code, shape in entries:
        if name in relative or name == "__metadata__":
            raise ValueError(
                f"tensor {name!r} cannot be written twice" if name in relative else "reserved name"
            )
        if code not in DTYPES:
            raise ValueError(f"tensor {name!r} has the unknown dtype {code!r}")
        nbytes = DTYPES[code].nbytes(tuple(shape))
        if nbytes is None or any(dim < 0 for dim in shape):
            raise ValueError(f"tensor {name!r} has an impossible shape {tuple(shape)} for {code}")
        relative[name] = position
        table[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    body = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # a program that maps the file can then use elements of up to 8 bytes where they lie; JSON ignores spaces
    body = body.ljust(room - 8)
    body += b" " * (-len(body) % 8)
    header = struct.pack("<Q", len(body)) + body
    return header, {name: len(header) + offset for name, offset in relative.items()}
