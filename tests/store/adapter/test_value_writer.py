"""An adapter's folder that has new values alone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from submerge.store import FileTable, Replace, TensorEntry, open_adapter, write_values


def test_new_values_are_read_as_they_were_written(tmp_path: Path) -> None:
    values = {
        "model.norm.weight": torch.arange(4.0),
        "model.layers.0.q.weight": torch.arange(6.0, dtype=torch.float64).view(2, 3).T,
    }
    dtypes = {"model.norm.weight": "BF16", "model.layers.0.q.weight": "F64"}
    entries = {
        name: TensorEntry(name, dtypes[name], tuple(tensor.shape), None, 0, 0)
        for name, tensor in values.items()
    }
    folder = write_values(tmp_path / "new", entries, iter(values.items()))
    adapter = open_adapter(str(folder))
    assert adapter.parts.keys() == values.keys()
    assert all(isinstance(part, Replace) for part in adapter.parts.values())
    with FileTable() as table:
        for name, tensor in values.items():
            assert torch.equal(adapter.tensor(name, table), tensor)
    stored = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.float64}
