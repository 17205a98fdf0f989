"""The values that an adapter gives a tensor, read by ranges like those of a file."""

from __future__ import annotations

from submerge.deferred import torch
from submerge.engine.work._adapter_edit import adapter_edit
from submerge.engine.work._input_reader import InputReader
from submerge.store import Checkpoint, FileTable, torch_dtype

__all__ = ["EditedSource"]


class EditedSource:
    """A tensor of `model` as the adapter of `editor` makes it, rounded to the type that the tensor has."""

    def __init__(self, model: Checkpoint, editor: Checkpoint, name: str, table: FileTable) -> None:
        assert editor.adapter is not None  # whoever has none changes nothing
        entry = model.tensors[name]
        self._dtype = torch_dtype(entry.dtype)
        edit = adapter_edit(editor.adapter, name, entry, table)
        self._reader = InputReader(model.source(name, table), entry.dtype, edit, 0)

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`."""
        work = torch.float64 if self._dtype == torch.float64 else torch.float32
        values = self._reader.edited(start, start + count, work)
        torch.frombuffer(into, dtype=self._dtype).copy_(values)
