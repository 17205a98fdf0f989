"""Digests and bytes: the same for any cut into blocks, for every type of numbers, and of nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import xxhash

from submerge.store import (
    DTYPES,
    MemorySource,
    blocks,
    byte_view,
    digest,
    file_digest,
    hasher,
    joined,
    range_digest,
)

DATA = bytes(range(256)) * 40


def test_digests_are_xxh3() -> None:
    wanted = xxhash.xxh3_128_hexdigest(DATA)
    assert digest(DATA) == digest(memoryview(DATA)) == wanted
    begun = hasher(DATA[:100])
    begun.update(DATA[100:])
    assert begun.hexdigest() == wanted


def test_files(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    assert file_digest(tmp_path / "data") == digest(DATA)
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "nothing")


def test_digests_of_blocks_are_joined() -> None:
    one, other = digest(DATA[:7]), digest(DATA[7:])
    assert joined([one]) == one
    assert joined([one, other]) == digest(bytes.fromhex(one + other)) != digest(DATA)
    assert joined([]) == digest(b"")


@pytest.mark.parametrize("length", [3, 4, 1000, 1 << 22])
def test_ranges_are_read_in_blocks(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submerge.store.format._source.BLOCK", 4 * length)
    source = MemorySource(torch.arange(1000, dtype=torch.int32))
    assert range_digest(source, 10, 990, 4) == digest(torch.arange(10, 990, dtype=torch.int32).numpy())
    firsts, lengths = zip(*((first, len(block)) for first, block in blocks(source, 10, 990, 4)), strict=True)
    assert firsts == tuple(range(10, 990, length))
    assert sum(lengths) == 4 * 980
    assert list(blocks(source, 5, 5, 4)) == []
    assert range_digest(source, 5, 5, 4) == digest(b"")


@pytest.mark.parametrize("dtype", [d.torch for d in DTYPES.values() if d.supported and d.torch])
def test_bytes_of_every_type(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    view = byte_view(values)
    assert view.nbytes == 4 * values.element_size()
    view[:] = bytes(view.nbytes)
    assert not values.to(torch.float64).any()
    assert byte_view(values[0, 0]).nbytes == values.element_size()


def test_bytes_of_nothing_and_of_what_has_gaps() -> None:
    for shape in ((0,), (3, 0)):
        assert byte_view(torch.empty(shape)).cast("B").nbytes == 0
    with pytest.raises(RuntimeError):
        byte_view(torch.zeros(4, 4).T)
