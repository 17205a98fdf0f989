"""An adapter's folder without factors: new values of parameters alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from submerge.deferred import torch
from submerge.store.adapter._layout import file_key
from submerge.store.adapter._portable_config import portable_config, write_config
from submerge.store.adapter._writer import ADAPTER_STEM
from submerge.store.format import (
    DTYPES,
    ShardWriter,
    TensorEntry,
    byte_view,
    plan_shards,
    preallocate,
    sync_folder,
)

__all__ = ["write_values"]


def write_values(
    folder: Path, entries: Mapping[str, TensorEntry], values: Iterable[tuple[str, torch.Tensor]]
) -> Path:
    """Write new values of parameters into a folder that `open_adapter` takes, and return the folder.

    Nothing but the tensor that `values` yields is in memory; each is written to its place at once.

    Args:
        folder: is made.
        entries: shape and dtype of each parameter, by the name that adapters have for it.
        values: each of them once, in any order. They are cast to their entry's dtype. Those of embeddings are
            those of a head that is tied to them, too.

    Raises `WorkError` where the disk fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specs = sorted((file_key(name), entry.dtype, entry.shape) for name, entry in entries.items())
    (shard,) = plan_shards(specs, stem=ADAPTER_STEM)
    preallocate(folder, shard)
    with ShardWriter(folder, [shard]) as writer:
        for name, tensor in values:
            entry = shard.entries[file_key(name)]
            writer.write(entry, 0, byte_view(tensor.to(DTYPES[entry.dtype].torch).contiguous()))
        writer.sync()
    config = portable_config({}, entries, {}, rank=1, base=None, revision=None, task_type=None, ties=True)
    write_config(folder, config)
    sync_folder(folder)
    return folder
