from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from submerge.errors import WorkError
from submerge.store import FileTable, InMemory, MemorySource, Source, TensorEntry, file_identity, read_header
from submerge.store.format import _source as module

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


def sample(dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(60).reshape(5, 12) % 7).to(dtype)


def pull(source: Source, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    buffer = bytearray(count * torch.empty(0, dtype=dtype).element_size())
    source.read(start, count, memoryview(buffer))
    return torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("start", "count"), [(0, 60), (0, 0), (13, 20), (59, 1), (60, 0)])
def test_ranges_from_file_and_memory(tmp_path: Path, dtype: torch.dtype, start: int, count: int) -> None:
    made = sample(dtype)
    save_file({"pad": torch.ones(3, dtype=torch.uint8), "w": made}, tmp_path / "x")
    expected = made.reshape(-1)[start : start + count]
    entry = read_header(tmp_path / "x").entries["w"]
    with FileTable() as table:
        table.advise(entry, start, count)
        assert torch.equal(pull(table.source(entry), start, count, dtype), expected)
    assert torch.equal(pull(MemorySource(made), start, count, dtype), expected)
    assert torch.equal(pull(MemorySource(made.t().contiguous().t()), start, count, dtype), expected)


def test_scalars_and_empty_tensors_in_memory() -> None:
    assert pull(MemorySource(torch.tensor(2.5)), 0, 1, torch.float32).item() == 2.5
    assert pull(MemorySource(torch.zeros(0, 3)), 0, 0, torch.float32).numel() == 0
    parameter = torch.nn.Parameter(torch.ones(3))
    assert torch.equal(pull(MemorySource(parameter), 1, 2, torch.float32), torch.ones(2))


@pytest.mark.parametrize("made", [torch.zeros(4), np.zeros(4, np.float32)])
def test_memory_is_not_copied(made: InMemory) -> None:
    source = MemorySource(made)
    made[2] = 5
    assert pull(source, 2, 1, torch.float32).item() == 5


def test_arrays_hold_bits() -> None:
    made = sample(torch.bfloat16)
    bits = made.view(torch.uint16).numpy()
    for array in (bits, np.asfortranarray(bits)):
        assert torch.equal(pull(MemorySource(array), 13, 20, torch.bfloat16), made.reshape(-1)[13:33])


def test_buffers_may_be_of_any_format(tmp_path: Path) -> None:
    save_file({"w": torch.arange(4.0)}, tmp_path / "x")
    entry = read_header(tmp_path / "x").entries["w"]
    into = torch.empty(4)
    with FileTable() as table:
        table.source(entry).read(0, 4, into.numpy().data)
    assert torch.equal(into, torch.arange(4.0))


@pytest.mark.parametrize(("start", "count", "size"), [(-1, 1, 4), (0, 5, 20), (4, 1, 4), (0, 2, 4)])
def test_wrong_ranges_are_bugs_of_the_caller(start: int, count: int, size: int) -> None:
    with pytest.raises(ValueError):
        MemorySource(torch.zeros(4)).read(start, count, memoryview(bytearray(size)))


def test_a_file_that_shrank_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file({"w": torch.arange(100.0)}, path)
    entry = read_header(path).entries["w"]
    with FileTable() as table:
        source = table.source(entry)
        os.truncate(path, path.stat().st_size - 8)
        pull(source, 0, 98, torch.float32)
        with pytest.raises(WorkError, match=r"x, tensor w: the file ended 8 bytes early"):
            pull(source, 0, 100, torch.float32)


def test_short_reads_and_io_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    save_file({"w": torch.arange(100.0)}, path)
    entry = read_header(path).entries["w"]
    whole = module._pread_into
    monkeypatch.setattr(module, "_pread_into", lambda fd, buffer, offset: whole(fd, buffer[:7], offset))
    with FileTable() as table:
        assert torch.equal(pull(table.source(entry), 3, 50, torch.float32), torch.arange(3.0, 53.0))

        def fail(*_: object) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(module, "_pread_into", fail)
        with pytest.raises(WorkError, match="tensor w: reading failed"):
            pull(table.source(entry), 0, 1, torch.float32)


def test_a_table_opens_each_file_once_and_threads_share_it(tmp_path: Path) -> None:
    made = {f"w{number}": torch.full((1000,), float(number)) for number in range(8)}
    save_file(made, tmp_path / "x")
    entries = read_header(tmp_path / "x").entries
    with FileTable() as table, ThreadPoolExecutor(8) as pool:
        read = list(
            pool.map(lambda e: pull(table.source(e), 0, 1000, torch.float32), list(entries.values()) * 5)
        )
        assert len(table._fds) == 1
    for entry, tensor in zip(list(entries.values()) * 5, read, strict=True):
        assert torch.equal(tensor, made[entry.name])


def test_a_table_after_close_and_without_files(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "x")
    entry = read_header(tmp_path / "x").entries["w"]
    table = FileTable()
    table.source(entry)
    table.close()
    table.close()
    with pytest.raises(ValueError, match="closed"):
        table.source(entry)
    with FileTable() as table:
        (tmp_path / "x").unlink()
        with pytest.raises(WorkError, match="cannot be opened"):
            table.source(entry)
        memory = TensorEntry("m", "F32", (1,), None, 0, 4)
        table.advise(memory, 0, 1)
        with pytest.raises(ValueError, match="in memory"):
            table.source(memory)


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1234")
    before = file_identity(path)
    assert before["size"] == 4
    assert file_identity(path) == before
    os.utime(path, ns=(0, 0))
    assert file_identity(path) != before
