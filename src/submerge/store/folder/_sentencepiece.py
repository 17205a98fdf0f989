"""A sentencepiece model, as far as it is read: the number of its pieces, and what it cuts texts by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["count_pieces", "rules_digest"]

_PIECE, _TRAINING, _NORMALIZER = 1, 2, 3
_OF_THE_MODEL = (3, 24, 35)
"""Fields of the training's settings: unigram or pairs, whether spaces end words, whether bytes stand in."""


def count_pieces(path: Path) -> int | None:
    """Return how many pieces a sentencepiece model holds; None for a file of another form.

    The model is a protocol buffer, and each piece a field 1 of it.
    """
    try:
        return sum(number == _PIECE for number, _ in _fields(path.read_bytes())) or None
    except (IndexError, KeyError):
        return None


def rules_digest(path: Path) -> str:
    """Return a digest of what a sentencepiece model cuts texts by: its pieces with their scores, its rules.

    How it was trained is left out. Of a file of another form it is that of the whole.
    """
    data = path.read_bytes()
    digest = hashlib.sha256()
    try:
        for row in _rules(data):
            digest.update(row)
    except (IndexError, KeyError):
        digest = hashlib.sha256(data)
    return digest.hexdigest()


def _rules(data: bytes) -> Iterator[bytes]:
    for number, value in _fields(data):
        if number in (_PIECE, _NORMALIZER):
            yield bytes([number]) + value
        elif number == _TRAINING:
            yield from (bytes([number, own]) + told for own, told in _fields(value) if own in _OF_THE_MODEL)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each field of a protocol buffer; raise `IndexError` if it is none.

    A field is a key of number and wire type, then for wire type 2 a length and so many bytes, for 0 a number,
    for 1 and 5 eight and four bytes.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        start = at
        if tag & 7 == 2:
            length, start = _varint(data, at)
            at = start + length
        elif tag & 7 == 0:
            _, at = _varint(data, at)
        else:
            at += {1: 8, 5: 4}[tag & 7]
        if at > len(data):
            raise IndexError
        yield tag >> 3, data[start:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while data[at] & 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
