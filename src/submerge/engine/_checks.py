"""Outputs that are whole and yet not what was asked for: what `verify` finds in a merge's own records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from submerge.engine._record import DIGEST
from submerge.engine._tensor import torch_dtype
from submerge.engine._workspace import host_bytes
from submerge.errors import few
from submerge.store import DTYPES, Checkpoint, FileTable, find_aliases, tied_embeddings

__all__ = ["idle_models", "split_copies", "unchanged"]

BLOCK = 1 << 22


def idle_models(manifest: Mapping[str, Any]) -> list[str]:
    """Return a problem for each model that was to be merged and of which no tensor was."""
    return [
        f"{line['model']}: took no part: none of its tensors was merged"
        for line in _lines(manifest)
        if line.get("used") == 0
    ]


def split_copies(model: Checkpoint, manifest: Mapping[str, Any], *, ask: bool) -> list[str]:
    """Return a problem for each parameter that the configuration ties and the file has in several versions.

    `ask` allows transformers to be asked what the model's class ties. Values are compared by their digests
    in the manifest.
    """
    shapes = {name: entry.shape for name, entry in model.tensors.items()}
    silent = tied_embeddings(model.config) is None
    aliases = find_aliases(model.config, shapes, ask=ask and silent)
    problems = []
    for group in aliases.groups if aliases.ties else ():
        stored = [name for name in group.names if name in manifest["tensors"] and name in shapes]
        versions = {
            tuple(map(str, (line["dtype"], line["shape"], line[DIGEST])))
            for line in (manifest["tensors"][name] for name in stored)
        }
        if len(versions) > 1:
            what = "the configuration ties them, and their values differ"
            problems.append(f"{', '.join(stored)}: {what}, so that it depends on the reader which are used")
    return problems


def unchanged(model: Checkpoint, base: Checkpoint, manifest: Mapping[str, Any]) -> list[str]:
    """Return a problem if every merged tensor equals the base's, and a model that was merged does not.

    It reads until the first value that differs: nearly always that is in the first tensor.
    """
    tensors = manifest["tensors"]
    merged = [name for name, line in tensors.items() if line.get("treatment") == "merge"]
    names = [n for n in merged if n in model.tensors and n in base.tensors]
    others = [line["model"] for line in _lines(manifest) if _differs(line, manifest)]
    if not names or not others:
        return []
    with FileTable() as table:
        if not all(_equal(model, base, name, table) for name in names):
            return []
    what = f"nothing changed: all tensors equal the base's, and {few(others)} has other values"
    return [f"{what}; were the weights 0, or was the base named as the model?"]


def _lines(manifest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    lines = manifest.get("models")
    held = lines if isinstance(lines, list) else []
    return [line for line in held if isinstance(line, dict) and isinstance(line.get("model"), str)]


def _differs(line: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Return whether a participant has an adapter, or other values than the base, as far as is recorded."""
    label = manifest["recipe"].get("base_model")
    if not line.get("used") or line["model"] == label:
        return False
    base = next((one for one in _lines(manifest) if one["model"] == label), {})
    read, of_base = line.get("read"), base.get("read")
    return "adapter" in line or (bool(of_base) and read != of_base)


def _equal(model: Checkpoint, base: Checkpoint, name: str, table: FileTable) -> bool:
    """Return whether the output's values are the base's, in the output's number format."""
    entry, other = model.tensors[name], base.tensors[name]
    if entry.shape != other.shape or DTYPES[other.dtype].kind != "float":
        return False
    dtype, sources = torch_dtype(entry.dtype), (model.source(name, table), base.source(name, table))
    for start in range(0, entry.numel, BLOCK):
        count = min(BLOCK, entry.numel - start)
        values = [torch.empty(count, dtype=d) for d in (dtype, torch_dtype(other.dtype))]
        for source, held in zip(sources, values, strict=True):
            source.read(start, count, host_bytes(held))
        if host_bytes(values[0]) != host_bytes(values[1].to(dtype)):
            return False
    return True
