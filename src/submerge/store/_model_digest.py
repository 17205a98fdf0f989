"""How a model is known again without reading all of it."""

from __future__ import annotations

from submerge.store._checkpoint import Checkpoint
from submerge.store.format import FileTable, hasher

__all__ = ["model_digest"]

SAMPLE = 256
"""Values from the middle of each tensor that the digest is of, beside names, types and shapes."""


def model_digest(model: Checkpoint) -> str:
    """Return a digest of a model's names, types and shapes, and of some values of each tensor.

    A fine-tune of the model has another one, a copy in another folder, or of other shards, has the same. An
    adapter that lies over the model does not count.
    """
    of_model, model = hasher(), model.under or model
    with FileTable() as table:
        for name, entry in sorted(model.tensors.items()):
            of_model.update(f"{name} {entry.dtype} {list(entry.shape)}\n".encode())
            count = min(SAMPLE, entry.numel)
            values = bytearray(count * entry.itemsize)
            model.source(name, table).read((entry.numel - count) // 2, count, memoryview(values))
            of_model.update(values)
    return str(of_model.hexdigest())
