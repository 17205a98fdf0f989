"""A sentencepiece model, of which only the number of pieces is read."""

from __future__ import annotations

from pathlib import Path

__all__ = ["count_pieces"]


def count_pieces(path: Path) -> int | None:
    """Return how many pieces a sentencepiece model holds; None for a file of another form.

    The model is a protocol buffer, and each piece a field 1 of it: a key of number and wire type, then for
    wire type 2 a length and so many bytes, for 0 a number, for 1 and 5 eight and four bytes.
    """
    data = path.read_bytes()
    at, pieces = 0, 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            if tag & 7 == 2:
                length, at = _varint(data, at)
                at += length
            elif tag & 7 == 0:
                _, at = _varint(data, at)
            else:
                at += {1: 8, 5: 4}[tag & 7]
            pieces += tag >> 3 == 1
    except (IndexError, KeyError):
        return None
    return pieces if at == len(data) and pieces else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while data[at] & 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
