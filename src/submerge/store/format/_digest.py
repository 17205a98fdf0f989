"""Digests of bytes: XXH3 with 128 bits, of files, of blocks, and of what was digested in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from submerge.store.format._source import BLOCK, Source, blocks

__all__ = ["DIGEST", "digest", "file_digest", "hasher", "joined", "range_digest"]

DIGEST = "xxh3_128"
"""The key under which a digest stands in submerge.json."""


def hasher(data: Any = b"") -> Any:
    """Return a digest that has begun with `data`: `update` takes more bytes, `hexdigest` ends it."""
    return xxhash.xxh3_128(data)


def digest(data: Any) -> str:
    """Return the digest of bytes, or of a buffer."""
    return str(xxhash.xxh3_128_hexdigest(data))


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes; raise `OSError` where it cannot be read."""
    of_file = hasher()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            of_file.update(block)
    return str(of_file.hexdigest())


def range_digest(source: Source, start: int, stop: int, itemsize: int) -> str:
    """Return the digest of the bytes of elements [start, stop) of a source."""
    of_range = hasher()
    for _, block in blocks(source, start, stop, itemsize):
        of_range.update(block)
    return str(of_range.hexdigest())


def joined(digests: Sequence[str]) -> str:
    """Return one digest for what was digested in blocks: that of the blocks' digests, one after another.

    The digest of a single block stays what it is, so that a tensor of one block has the digest of its bytes.
    """
    if len(digests) == 1:
        return digests[0]
    return digest(b"".join(map(bytes.fromhex, digests)))
