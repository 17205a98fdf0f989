"""Outputs that are complete and yet not what was asked for, by what a merge records of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from submerge.deferred import np
from submerge.errors import RequestError, few
from submerge.kernels import array_type
from submerge.recipe import COEFFICIENTS, read_coefficients
from submerge.store import (
    DIGEST,
    Aliases,
    Checkpoint,
    FileTable,
    Manifest,
    ModelRecord,
    TensorRecord,
    byte_view,
    file_digest,
    find_aliases,
    read_values,
    rounded,
)

__all__ = ["changed_calibration", "changed_coefficients", "models_without_part", "split_copies", "unchanged"]

BLOCK = 1 << 22


def models_without_part(manifest: Manifest) -> list[str]:
    """Return a problem for each model that was to be merged and of which no tensor was."""
    return [
        f"{record.model}: took no part: none of its tensors was merged"
        for record in manifest.models
        if record.used == 0
    ]


def changed_coefficients(folder: Path, manifest: Manifest) -> list[str]:
    """Return a problem if the file of coefficients is missing, or has other numbers than those merged by."""
    if manifest.coefficients is None:
        return []
    try:
        read = read_coefficients(folder / manifest.coefficients["file"])
    except RequestError as error:
        return [str(problem) for problem in error.problems]
    same = read.digest == manifest.coefficients[DIGEST]
    return [] if same else [f"{COEFFICIENTS}: the numbers are not those of the merge"]


def changed_calibration(folder: Path, manifest: Manifest) -> list[str]:
    """Return a problem if the file of a router's calibration is missing, or has other bytes."""
    if manifest.calibration is None:
        return []
    path = folder / str(manifest.calibration["file"])
    try:
        same = file_digest(path) == manifest.calibration[DIGEST]
    except OSError as error:
        return [f"{path.name}: the router's calibration cannot be read ({error.strerror})"]
    return [] if same else [f"{path.name}: the bytes are not those that calibration wrote"]


def split_copies(model: Checkpoint, manifest: Manifest, *, ask: bool) -> list[str]:
    """Return a problem for each parameter that the configuration ties and the file has in several versions.

    `ask` allows transformers to be asked what the model's class ties. Values are compared by their digests
    in the manifest.
    """
    aliases = find_aliases(model.config, model.shapes, ask=False)
    if ask and aliases.ties is not False and _split(aliases, manifest.tensors):
        aliases = find_aliases(model.config, model.shapes, ask=True)
    what = "the configuration ties them, and their values differ: it depends on the reader which are used"
    split = _split(aliases, manifest.tensors) if aliases.ties else []
    return [f"{', '.join(names)}: {what}" for names in split]


def _split(aliases: Aliases, tensors: Mapping[str, TensorRecord]) -> list[list[str]]:
    """Return the names of each parameter that is there in several versions."""
    split = []
    for group in aliases.groups:
        stored = [name for name in group.names if name in tensors]
        records = (tensors[name] for name in stored)
        if len({(record.dtype, record.shape, record.digest) for record in records}) > 1:
            split.append(stored)
    return split


def unchanged(model: Checkpoint, base: Checkpoint, manifest: Manifest) -> list[str]:
    """Return a problem if every merged tensor equals the base's, and a model that was merged does not.

    It reads until the first value that differs: nearly always that is in the first tensor. Where a gate has
    a bank, the updates are there, and the checkpoint may well be the base (`fixed: base`).
    """
    if manifest.bank:
        return []
    merged = [name for name, record in manifest.tensors.items() if record.treatment == "merge"]
    names = [n for n in merged if n in model.tensors and n in base.tensors]
    others = [record.model for record in manifest.models if _differs(record, manifest)]
    if not names or not others:
        return []
    with FileTable() as table:
        if not all(_equal(model, base, name, table) for name in names):
            return []
    what = f"nothing changed: all tensors equal the base's, and {few(others)} has other values"
    return [f"{what}; were the weights 0, or was the base named as the model?"]


def _differs(record: ModelRecord, manifest: Manifest) -> bool:
    """Return whether a participant has an adapter, or other values than the base, as far as is recorded."""
    if not record.used or record.model == manifest.base:
        return False
    if record.adapter is not None:
        return True
    base = next((other for other in manifest.models if other.model == manifest.base), None)
    if base is None or record.read.get("tensors") != base.read.get("tensors"):  # one of them lacks tensors
        return False
    return bool(record.read.get(DIGEST) != base.read.get(DIGEST))


def _equal(model: Checkpoint, base: Checkpoint, name: str, table: FileTable) -> bool:
    """Return whether the output's values are the base's, in the output's number format."""
    entry, other = model.tensors[name], base.tensors[name]
    if entry.shape != other.shape or not other.is_float:
        return False
    output, source = model.source(name, table), base.source(name, table)
    for start in range(0, entry.numel, BLOCK):
        count = min(BLOCK, entry.numel - start)
        written = np.empty(count, array_type(entry.dtype))
        output.read(start, count, byte_view(written))
        expected = rounded(read_values(source, other.dtype, start, count), entry.dtype)
        if not np.array_equal(written.view(np.uint8), expected.view(np.uint8)):
            return False
    return True
