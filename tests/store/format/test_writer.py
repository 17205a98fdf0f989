from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from store.helpers_store import tensors
from submerge.errors import WorkError
from submerge.store import (
    ShardWriter,
    dtype_named,
    index_json,
    open_checkpoint,
    plan_shards,
    preallocate,
    read_header,
    sync_file,
    sync_folder,
    whole_file,
)
from submerge.store.format import _disk as module


def listed(made: dict[str, torch.Tensor]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, dtype_named(t.dtype) or "", tuple(t.shape)) for name, t in made.items()]


@pytest.mark.parametrize("max_bytes", [1, 40, 100, 10**9])
def test_written_folders_load_with_the_library(tmp_path: Path, max_bytes: int) -> None:
    made = tensors()
    shards = plan_shards(listed(made), max_bytes)
    for shard in shards:
        preallocate(tmp_path, shard)
        assert (tmp_path / shard.file).stat().st_size == shard.size
    jobs = [(shard.entries[name], start) for shard in shards for name in shard.entries for start in range(64)]
    random.Random(0).shuffle(jobs)
    with ShardWriter(tmp_path, shards) as writer, ThreadPoolExecutor(4) as pool:

        def write(job: tuple[object, int]) -> None:
            entry, start = job
            flat = made[entry.name].reshape(-1)[start : start + 1]  # type: ignore[attr-defined]
            writer.write(entry, start, flat.view(torch.uint8).numpy().data) if flat.numel() else None  # type: ignore[arg-type]

        list(pool.map(write, jobs))
        writer.sync()
    for shard in shards:
        sync_file(tmp_path / shard.file)
        assert read_header(tmp_path / shard.file).metadata == {"format": "pt"}
    sync_folder(tmp_path)
    index = index_json(shards)
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_bytes(index)
    loaded: dict[str, torch.Tensor] = {}
    for shard in shards:
        loaded |= load_file(tmp_path / shard.file)
    assert set(loaded) == set(made)
    for name, tensor in made.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert set(open_checkpoint(str(tmp_path)).tensors) == set(made)


@pytest.mark.parametrize(
    ("code", "text"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EFBIG, "smaller shards")],
)
def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, text: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WorkError, match=text) as caught:
        preallocate(tmp_path, plan_shards([("a", "F32", (1 << 20,))], 1 << 40)[0])
    assert "needs 4.0 MiB" in str(caught.value)
    assert "is free" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    shard = plan_shards([("a", "F32", (8,))], 1 << 40)[0]
    preallocate(tmp_path, shard)
    assert (tmp_path / shard.file).stat().st_size == shard.size


def test_links_are_not_written_through(tmp_path: Path) -> None:
    shard = plan_shards([("a", "F32", (8,))], 1 << 40)[0]
    outside = tmp_path / "precious"
    outside.write_text("keep")
    out = tmp_path / "out"
    out.mkdir()
    (out / shard.file).symlink_to(outside)
    with pytest.raises(WorkError, match="symbolic link"):
        preallocate(out, shard)
    with pytest.raises(WorkError, match="symbolic link"):
        ShardWriter(out, [shard])
    assert outside.read_text() == "keep"


def test_missing_folders_and_wrong_sizes(tmp_path: Path) -> None:
    shard = plan_shards([("a", "F32", (8,))], 1 << 40)[0]
    with pytest.raises(WorkError, match="creating the file failed"):
        preallocate(tmp_path / "none", shard)
    with pytest.raises(WorkError, match="opening the file failed"):
        ShardWriter(tmp_path, [shard])
    (tmp_path / shard.file).write_bytes(b"short")
    with pytest.raises(WorkError, match="the plan says"):
        ShardWriter(tmp_path, [shard])
    with pytest.raises(WorkError):
        sync_file(tmp_path / "none")


def test_writes_outside_a_tensor_are_bugs(tmp_path: Path) -> None:
    shard = plan_shards([("a", "F32", (8,)), ("e", "F32", (0,))], 1 << 40)[0]
    preallocate(tmp_path, shard)
    with ShardWriter(tmp_path, [shard]) as writer:
        writer.write(shard.entries["e"], 0, memoryview(b""))
        for start, size in ((-1, 4), (8, 4), (0, 36)):
            with pytest.raises(ValueError):
                writer.write(shard.entries["a"], start, memoryview(bytes(size)))


def test_short_writes_and_a_disk_that_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = plan_shards([("a", "F32", (8,))], 1 << 40)[0]
    preallocate(tmp_path, shard)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:3], offset))
    with ShardWriter(tmp_path, [shard]) as writer:
        writer.write(shard.entries["a"], 0, torch.arange(8.0).numpy().data)
        assert torch.equal(load_file(tmp_path / shard.file)["a"], torch.arange(8.0))

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(WorkError, match="writing tensor a needs 32 bytes"):
            writer.write(shard.entries["a"], 0, torch.arange(8.0).numpy().data)


def test_preallocating_replaces(tmp_path: Path) -> None:
    shard = plan_shards([("a", "F32", (8,))], 1 << 40)[0]
    (tmp_path / shard.file).write_bytes(b"x" * 10_000)
    preallocate(tmp_path, shard)
    assert torch.equal(load_file(tmp_path / shard.file)["a"], torch.zeros(8))
    assert module._FULL


def test_the_disk_is_asked_to_write_what_ends_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "WRITEBACK", 100)
    monkeypatch.setattr(module, "_begin_writing", lambda fd, offset, length: asked.append((offset, length)))
    for offset, length in [(8, 50), (58, 41), (99, 1), (100, 99), (199, 202), (401, 10)]:
        module.begin_writeback(3, offset, length)
    assert asked == [(0, 100), (100, 300)]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_half_a_file_is_not_left(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "notes.json"
    path.write_text("before")

    def fail() -> None:
        with whole_file(path) as unfinished:
            unfinished.write_text("half")
            assert path.read_text() == "before"
            raise error

    with pytest.raises(error):
        fail()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"notes.json": "before"}
    with whole_file(path, synced=True) as unfinished:
        unfinished.write_text("after")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"notes.json": "after"}
