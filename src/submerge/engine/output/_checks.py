"""Outputs that are whole and yet not what was asked for: what `verify` finds in a merge's own records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from submerge.deferred import torch
from submerge.engine.plan import torch_dtype
from submerge.engine.work import DIGEST, host_bytes
from submerge.errors import few
from submerge.store import DTYPES, Aliases, Checkpoint, FileTable, find_aliases

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
    aliases = find_aliases(model.config, shapes, ask=False)
    if ask and aliases.ties is not False and _split(aliases, manifest["tensors"]):
        aliases = find_aliases(model.config, shapes, ask=True)
    what = "the configuration ties them, and their values differ: it depends on the reader which are used"
    found = _split(aliases, manifest["tensors"]) if aliases.ties else []
    return [f"{', '.join(names)}: {what}" for names in found]


def _split(aliases: Aliases, tensors: Mapping[str, Any]) -> list[list[str]]:
    """Return the names of each parameter that is there in several versions."""
    found = []
    for group in aliases.groups:
        stored = [name for name in group.names if name in tensors]
        lines = (tensors[name] for name in stored)
        if len({(line["dtype"], str(line["shape"]), line[DIGEST]) for line in lines}) > 1:
            found.append(stored)
    return found


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
    if "adapter" in line:
        return True
    read, of_base = line.get("read"), base.get("read")
    if not isinstance(read, dict) or not isinstance(of_base, dict):
        return False
    comparable = read.get("tensors") == of_base.get("tensors")  # else one of them lacks tensors
    return comparable and read.get(DIGEST) != of_base.get(DIGEST)


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
