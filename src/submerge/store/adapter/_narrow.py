"""Tensors of adapters that are floats of 8 bits, without scales: bfloat16 holds all of their values."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from submerge.deferred import torch
from submerge.store.adapter._lora_names import is_of_lora
from submerge.store.format import (
    DTYPES,
    FileTable,
    InMemory,
    TensorEntry,
    memory_entry,
    read_elements,
)

__all__ = ["narrow_factors", "narrow_tensors", "widened"]

_NARROW = re.compile(r"F8_E[45]M[23](?:FNUZ)?")


def narrow_tensors(entries: Mapping[str, TensorEntry]) -> list[str]:
    """Return the tensors of 8 bits that torch can read."""
    return [
        key
        for key, entry in entries.items()
        if _NARROW.fullmatch(entry.dtype) and DTYPES[entry.dtype].torch is not None
    ]


def narrow_factors(entries: Mapping[str, TensorEntry]) -> list[str]:
    """Return the tensors of 8 bits that are factors of LoRA, by their names alone."""
    return [key for key in narrow_tensors(entries) if is_of_lora(key)]


def widened(
    entries: Mapping[str, TensorEntry],
    names: Collection[str],
    memory: Mapping[str, InMemory],
    *,
    pending: bool,
) -> tuple[dict[str, TensorEntry], dict[str, InMemory]]:
    """Return the tensors with those of some names as bfloat16, and the values of all that are in memory.

    Where the file is `pending`, not downloaded yet, the types alone are changed.
    """
    if pending:
        wide = {key: replace(entries[key], dtype="BF16", nbytes=2 * entries[key].numel) for key in names}
        return {**entries, **wide}, dict(memory)
    values: dict[str, torch.Tensor] = {}
    with FileTable() as table:
        for key in names:
            stored = memory.get(key)
            if stored is None:
                entry = entries[key]
                stored = read_elements(table.source(entry), entry.dtype, 0, entry.numel).view(entry.shape)
            assert isinstance(stored, torch.Tensor)
            values[key] = stored.bfloat16()
    wide = {key: memory_entry(key, tensor) for key, tensor in values.items()}
    return {**entries, **wide}, {**memory, **values}
