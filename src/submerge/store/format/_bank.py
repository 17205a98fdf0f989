"""`bank.safetensors`: what a gate needs at run time, gathered from parts that are written as they come.

Ranks may depend on the values, so that the layout is known only at the end. Until then each tensor's part is
a small safetensors file of its own, which has its name only when it is complete: workers in other processes
can write them, and a later run can take them up.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from submerge.deferred import torch
from submerge.errors import writing
from submerge.store.format._byte_view import byte_view
from submerge.store.format._digest import file_digest, hasher
from submerge.store.format._disk import whole_file
from submerge.store.format._dtypes import dtype_named
from submerge.store.format._file_table import FileTable
from submerge.store.format._header import TensorEntry, read_header
from submerge.store.format._header_bytes import encode_header
from submerge.store.format._shards import Shard, plan_shards
from submerge.store.format._source import Source, blocks
from submerge.store.format._writer import ShardWriter, preallocate

__all__ = ["BANK", "BankParts", "BankTensor", "write_bank"]

BANK = "bank.safetensors"
PARTS = ".bank"
"""Hidden, so that no file which a model carries has its name."""


class BankParts:
    """The parts of a bank in an unfinished folder, by the number of the tensor that each belongs to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PARTS

    def put(self, number: int, tensors: Mapping[str, torch.Tensor]) -> str:
        """Write a part, and return its digest; raise `WorkError` if the disk refuses."""
        named = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
        header, _ = encode_header([(n, str(dtype_named(t.dtype)), tuple(t.shape)) for n, t in named.items()])
        of_part = hasher(header)
        path = self._path(number)
        hint = "free some space, or choose a folder on another disk"
        with writing(f"{path}: writing a part of the bank failed", hint):
            self.folder.mkdir(exist_ok=True)
            with whole_file(path) as unfinished, unfinished.open("wb") as file:
                file.write(header)
                for tensor in named.values():
                    of_part.update(byte_view(tensor))
                    file.write(byte_view(tensor))
        return str(of_part.hexdigest())

    def holds(self, number: int, digest: str) -> bool:
        """Return whether a part is there as it was written."""
        try:
            return file_digest(self._path(number)) == digest
        except OSError:
            return False

    def entries(self, number: int) -> dict[str, TensorEntry]:
        """Return the tensors of a part; empty where there is none."""
        path = self._path(number)
        return dict(read_header(path).entries) if path.exists() else {}

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


@dataclass(frozen=True)
class BankTensor:
    """A tensor for a bank: its name there, where it lies now, what opens it to be read, and whose it is."""

    name: str
    entry: TensorEntry
    open: Callable[[FileTable], Source]
    owner: str = BANK


def write_bank(folder: Path, tensors: Iterable[BankTensor]) -> tuple[Shard, dict[str, str]]:
    """Write `bank.safetensors` from tensors in their order; return its layout and each one's digest."""
    listed = list(tensors)
    specs = [(tensor.name, tensor.entry.dtype, tensor.entry.shape) for tensor in listed]
    (shard,) = plan_shards(specs, stem="bank")
    preallocate(folder, shard)
    digests: dict[str, str] = {}
    with FileTable() as table, ShardWriter(folder, [shard]) as writer:
        for tensor in listed:
            source, target = tensor.open(table), shard.entries[tensor.name]
            of_tensor = hasher()
            for start, block in blocks(source, 0, target.numel, target.itemsize):
                of_tensor.update(block)
                writer.write(target, start, block)
            digests[tensor.name] = of_tensor.hexdigest()
    return shard, digests
