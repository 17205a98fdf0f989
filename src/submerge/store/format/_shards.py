"""The plan of an output: which tensor goes into which file, at which byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submerge.store.format._dtypes import DTYPES
from submerge.store.format._header import TensorEntry
from submerge.store.format._header_bytes import TensorSpec, encode_header

__all__ = ["Shard", "index_json", "plan_shards"]


@dataclass(frozen=True)
class Shard:
    """One output file: its name, its header, where each tensor goes, and its size in bytes."""

    file: str
    header: bytes
    entries: Mapping[str, TensorEntry]
    size: int


def plan_shards(
    entries: Sequence[TensorSpec], max_bytes: int | None = None, *, stem: str = "model"
) -> list[Shard]:
    """Return the output files for these tensors, filled greedily in the given order.

    A file holds at most `max_bytes` of data, or everything; a larger tensor gets a file of its own. One file
    is `model.safetensors`, several are `model-00001-of-0000N.safetensors`. Within a file wide types come
    before narrow ones, which keeps every tensor aligned; otherwise the given order stays.
    """
    if max_bytes is not None and max_bytes <= 0:
        raise ValueError(f"max_bytes must be positive, not {max_bytes}")
    groups: list[list[TensorSpec]] = [[]]
    used = 0
    planned: set[str] = set()
    for name, code, shape in entries:
        if name in planned:
            raise ValueError(f"tensor {name!r} is planned twice")
        planned.add(name)
        nbytes = DTYPES[code].nbytes(tuple(shape)) or 0
        if groups[-1] and max_bytes is not None and used + nbytes > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append((name, code, tuple(shape)))
        used += nbytes
    count = len(groups)
    names = (
        [f"{stem}.safetensors"]
        if count == 1
        else [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    )
    return [_shard(file, group) for file, group in zip(names, groups, strict=True)]


def _shard(file: str, group: list[TensorSpec]) -> Shard:
    ordered = sorted(group, key=lambda entry: -DTYPES[entry[1]].bits)  # stable
    header, offsets = encode_header(ordered, {"format": "pt"})
    entries = {
        name: TensorEntry(name, code, shape, Path(file), offsets[name], DTYPES[code].nbytes(shape) or 0)
        for name, code, shape in ordered
    }
    return Shard(file, header, entries, len(header) + sum(entry.nbytes for entry in entries.values()))


def index_json(shards: Sequence[Shard]) -> bytes | None:
    """Return `model.safetensors.index.json` for several files, or None for one, which needs none."""
    if len(shards) < 2:
        return None
    weight_map = {name: shard.file for shard in shards for name in shard.entries}
    total = sum(entry.nbytes for shard in shards for entry in shard.entries.values())
    table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
