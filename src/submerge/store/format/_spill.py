"""A temporary file that tensors wait in until all of them are known."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from submerge.deferred import torch
from submerge.errors import WorkError
from submerge.store.format._byte_view import byte_view
from submerge.store.format._disk import pwrite_all

__all__ = ["SpillFile", "Spilled"]


@dataclass(frozen=True)
class Spilled:
    """A tensor in the file: its first byte, type and shape."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class SpillFile:
    """Tensors on disk instead of in memory; written from any thread, gone when it is closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._end = 0
        try:
            # it has no name where the system allows that: gone with the process, however that ends
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failure(error) from error

    def put(self, tensor: torch.Tensor) -> Spilled:
        """Return where a copy of the tensor lies now; raise `WorkError` when the disk is full or fails."""
        data = byte_view(tensor.detach().cpu().contiguous())
        with self._lock:
            offset = self._end
            self._end += data.nbytes
        try:
            pwrite_all(self._file.fileno(), data, offset)
        except OSError as error:
            raise self._failure(error) from error
        return Spilled(offset, tensor.dtype, tuple(tensor.shape))

    def get(self, spilled: Spilled) -> torch.Tensor:
        """Return a tensor that was put here."""
        values = torch.empty(spilled.shape, dtype=spilled.dtype)
        buffer = byte_view(values)
        done = 0
        while done < buffer.nbytes:
            part = os.pread(self._file.fileno(), buffer.nbytes - done, spilled.offset + done)
            if not part:
                raise WorkError(f"{self._folder}: a temporary file ended early — check the disk")
            buffer[done : done + len(part)] = part
            done += len(part)
        return values

    def close(self) -> None:
        """Drop the file; may be called twice."""
        self._file.close()

    def _failure(self, error: OSError) -> WorkError:
        hint = "free some space, or choose a folder on another disk that you may write to"
        return WorkError(f"{self._folder}: writing a temporary file failed ({error.strerror}) — {hint}")
