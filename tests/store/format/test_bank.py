"""Parts of a bank: written by any worker, found again by their digests, and gathered into one file."""

from functools import partial
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from submerge.errors import WorkError
from submerge.store import TensorEntry
from submerge.store.format import BANK, BankParts, BankTensor, FileTable, Source, write_bank

PARTS = [
    {"b.factor": torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), "a.core": torch.ones(2)},
    {"c.head": torch.arange(6).to(torch.bfloat16).view(2, 3)},
]


@pytest.fixture
def parts(tmp_path: Path) -> BankParts:
    return BankParts(tmp_path)


def test_parts_are_held_as_they_were_written(parts: BankParts, tmp_path: Path) -> None:
    digests = [parts.put(number, tensors) for number, tensors in enumerate(PARTS)]
    assert [parts.holds(number, digest) for number, digest in enumerate(digests)] == [True, True]
    assert not parts.holds(0, digests[1])
    assert not parts.holds(7, digests[0])
    assert parts.entries(7) == {}
    for number, tensors in enumerate(PARTS):
        assert {name: entry.shape for name, entry in parts.entries(number).items()} == {
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }
    parts.remove()
    assert not list(tmp_path.iterdir())


def test_the_order_of_the_tensors_does_not_change_the_digest(parts: BankParts) -> None:
    digest = parts.put(0, PARTS[0])
    assert parts.put(1, dict(reversed(PARTS[0].items()))) == digest


def test_a_part_that_changed_is_not_held(parts: BankParts) -> None:
    digest = parts.put(0, PARTS[0])
    (file,) = parts.folder.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert not parts.holds(0, digest)


def test_a_folder_that_cannot_be_written_to_is_told(parts: BankParts) -> None:
    parts.folder.write_text("a file in the place of the folder")
    with pytest.raises(WorkError, match="writing a part of the bank failed"):
        parts.put(0, PARTS[0])


def opened(table: FileTable, entry: TensorEntry) -> Source:
    return table.source(entry)


def test_the_bank_holds_all_parts(parts: BankParts, tmp_path: Path) -> None:
    for number, tensors in enumerate(PARTS):
        parts.put(number, tensors)
    entries = [parts.entries(number) for number in range(len(PARTS))]
    listed = [
        BankTensor(f"task.{name}", entry, partial(opened, entry=entry))
        for part in entries
        for name, entry in part.items()
    ]
    shard, digests = write_bank(tmp_path, listed)
    assert shard.file == BANK
    found = load_file(tmp_path / BANK)
    wanted = {f"task.{name}": tensor for part in PARTS for name, tensor in part.items()}
    assert found.keys() == wanted.keys() == digests.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)
        assert digests[name] == xxhash.xxh3_128(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()
