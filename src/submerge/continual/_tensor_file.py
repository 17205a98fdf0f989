"""Files of tensors that are written as they come, and are named by their digest when complete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from submerge.continual._manifest import FileRecord
from submerge.deferred import torch
from submerge.errors import WorkError
from submerge.store import (
    DTYPES,
    FileTable,
    TensorEntry,
    byte_view,
    dtype_named,
    encode_header,
    hasher,
    sync_file,
)
from submerge.store.format import Spilled, SpillFile

__all__ = ["TensorFileWriter", "read_tensor"]


class TensorFileWriter:
    """Collects tensors on the disk, then writes one safetensors file; a context manager.

    One tensor is in memory at a time. The bytes depend on what was added, not on the order.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tensors: dict[str, Spilled] = {}
        self._spill = SpillFile(root)

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._spill.close()

    def add(self, name: str, tensor: torch.Tensor) -> int:
        """Take a tensor, and return its bytes."""
        self._tensors[name] = self._spill.put(tensor)
        return tensor.numel() * tensor.element_size()

    def finish(self, stem: str, metadata: Mapping[str, str]) -> FileRecord:
        """Write `STEM-DIGEST.safetensors` under the root, to the disk; raise `WorkError` if that fails."""
        names = sorted(self._tensors)
        specs = [(n, str(dtype_named(self._tensors[n].dtype)), self._tensors[n].shape) for n in names]
        header, _ = encode_header(sorted(specs, key=lambda spec: -DTYPES[spec[1]].bits), metadata)
        unfinished = self.root / f"{stem}.unfinished"
        try:
            unfinished.parent.mkdir(exist_ok=True)
            digest = self._write(unfinished, header, sorted(names, key=self._width))
            sync_file(unfinished)
            name = f"{stem}-{digest[:16]}.safetensors"
            os.replace(unfinished, self.root / name)
        except OSError as error:
            hint = "free some space; the state is as it was"
            raise WorkError(f"{unfinished}: writing failed ({error.strerror}) — {hint}") from error
        return FileRecord(name, (self.root / name).stat().st_size, digest)

    def _width(self, name: str) -> int:
        """Return what wide types come first by, which keeps every tensor aligned."""
        return -DTYPES[str(dtype_named(self._tensors[name].dtype))].bits

    def _write(self, path: Path, header: bytes, names: list[str]) -> str:
        of_file = hasher(header)
        with path.open("wb") as file:
            file.write(header)
            for name in names:
                data = byte_view(self._spill.get(self._tensors[name]))
                of_file.update(data)
                file.write(data)
        return str(of_file.hexdigest())


def read_tensor(entry: TensorEntry, table: FileTable) -> torch.Tensor:
    """Return a tensor of a file that is open in a table, in its own dtype."""
    values = torch.empty(entry.shape, dtype=DTYPES[entry.dtype].torch)
    table.source(entry).read(0, entry.numel, byte_view(values))
    return values
