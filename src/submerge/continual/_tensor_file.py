"""Files of tensors that are written as they come, and are named by their digest when complete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BufferedRandom
from pathlib import Path

from submerge.continual._manifest import FileRecord
from submerge.continual._packed import packed
from submerge.deferred import torch
from submerge.errors import Problem, RequestError, WorkError, writing
from submerge.store import (
    DTYPES,
    FileTable,
    TensorEntry,
    byte_view,
    digest,
    dtype_named,
    encode_header,
    file_digest,
    read_elements,
    sync_file,
)
from submerge.store.format import UNFINISHED, Spilled, SpillFile, TensorSpec, pwrite_all

__all__ = ["TensorFileWriter", "free_path", "read_tensor"]

LARGE = 1 << 24
"""Bytes from which on a tensor is written to its place at once: there moments of GB are on the disk once."""

HEADER_ROOM = 1 << 24
"""Bytes before the first large tensor, for the header of some 10⁵ tensors and the spaces behind it."""


class TensorFileWriter:
    """Writes tensors into one safetensors file, `ROOT/STEM-DIGEST.safetensors`; a context manager.

    One tensor is in memory at a time. Large ones lie in the order in which they came, behind them the others,
    wide types first: the bytes do not depend on the order in which these were added.
    """

    def __init__(self, root: Path, stem: str) -> None:
        self.root, self.stem = root, stem
        self._unfinished = root / f"{stem}{UNFINISHED}"
        self._small: dict[str, Spilled] = {}
        self._spill = SpillFile(root)
        self._large: list[TensorSpec] = []
        self._end = HEADER_ROOM
        self._file: BufferedRandom | None = None

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._spill.close()
        if self._file is not None:
            self._file.close()
            self._unfinished.unlink(missing_ok=True)

    def add(self, name: str, tensor: torch.Tensor) -> int:
        """Take a tensor, and return its bytes.

        Raises `WorkError` where the disk refuses, and `RequestError` for NaN and Inf, which no removal would
        take out of a sum again.
        """
        self._check_finite(name, tensor)
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes < LARGE:
            self._small[name] = self._spill.put(tensor)
        else:
            self._append(name, tensor.detach().cpu().contiguous())
            if gap := -self._end % 8:  # programs that map the file can use every tensor where it lies
                self._append(f"gap.{len(self._large)}", torch.zeros(gap, dtype=torch.uint8))
        return nbytes

    def add_packed(self, name: str, tensor: torch.Tensor) -> int:
        """Take a tensor in fewer bytes, and return these; errors are those of `add`."""
        self._check_finite(name, tensor)
        return sum(self.add(key, part) for key, part in packed(name, tensor).items())

    def _check_finite(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.numel() and not all(map(torch.isfinite, torch.aminmax(tensor))):
            hint = "look at the adapter, and at what its model gives on the inputs; the state is as it was"
            raise RequestError(Problem(f"{name} has NaN or Inf", self.stem, hint))

    def _append(self, name: str, tensor: torch.Tensor) -> None:
        self._write(byte_view(tensor), self._end)
        self._large.append((name, str(dtype_named(tensor.dtype)), tuple(tensor.shape)))
        self._end += tensor.nbytes

    def _write(self, data: memoryview, offset: int) -> None:
        with self._writing():
            if self._file is None:
                self._unfinished.parent.mkdir(exist_ok=True)
                self._file = self._unfinished.open("w+b")
            pwrite_all(self._file.fileno(), data, offset)

    def finish(self, metadata: Mapping[str, str]) -> FileRecord:
        """Name the file, on the disk, and return its record; raise `WorkError` where it fails."""
        specs = [(n, str(dtype_named(t.dtype)), t.shape) for n, t in sorted(self._small.items())]
        specs.sort(key=lambda spec: -DTYPES[spec[1]].bits)
        room = HEADER_ROOM if self._large else 0
        header, offsets = encode_header([*self._large, *specs], metadata, room)
        if room and len(header) != room:
            raise WorkError(f"{self._unfinished}: there are more tensors than one file has room for")
        self._write(memoryview(header), 0)
        for name, _, _ in specs:
            self._write(byte_view(self._spill.get(self._small[name])), offsets[name])
        with self._writing():
            sync_file(self._unfinished)
            content = file_digest(self._unfinished)
            path = free_path(self.root, self.stem, content)
            os.replace(self._unfinished, path)
            return FileRecord(str(path.relative_to(self.root)), path.stat().st_size, content)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(f"{self._unfinished}: writing failed", "free some space; the state is as it was")


def free_path(root: Path, stem: str, content: str) -> Path:
    """Return the path of a file with content of this digest, another than those of all other stems.

    That holds on disks, too, to which `Law` and `law` are one name: there, two tasks of one content would be
    one file, which is gone with the first of them. States of earlier versions may have such a file already.
    """
    plain, marked = (root / f"{stem}-{mark[:16]}.safetensors" for mark in (content, _mark(stem, content)))
    if stem != stem.lower():
        return marked
    there = {path.name for path in plain.parent.glob("*.safetensors")} - {plain.name}
    return marked if plain.name.lower() in {name.lower() for name in there} else plain


def _mark(stem: str, content: str) -> str:
    return digest(f"{stem} {content}".encode())


def read_tensor(entry: TensorEntry, table: FileTable) -> torch.Tensor:
    """Return a tensor of a file that is open in a table, in its own dtype."""
    return read_elements(table.source(entry), entry.dtype, 0, entry.numel).view(entry.shape)
