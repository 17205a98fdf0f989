"""Tensors that wait in a temporary file come back bit for bit, and the file leaves nothing behind."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from submerge.errors import WorkError
from submerge.store.format import SpillFile

TENSORS = [
    torch.randn(5, 7, generator=torch.Generator().manual_seed(0)),
    torch.tensor(3.5, dtype=torch.bfloat16),
    torch.empty(0, 4),
    torch.arange(6, dtype=torch.float64).view(2, 3).t(),
    torch.tensor([float("nan"), float("inf"), -0.0]),
]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.contiguous(), other.contiguous()
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return not one.numel() or torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


def test_tensors_come_back_in_any_order(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    places = [file.put(tensor) for tensor in TENSORS]
    for place, tensor in reversed(list(zip(places, TENSORS, strict=True))):
        assert same_bits(file.get(place), tensor)
    file.close()
    file.close()
    assert not list(tmp_path.iterdir())


def test_threads_do_not_write_over_one_another(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    places: dict[int, Any] = {}

    def put(number: int) -> None:
        places[number] = file.put(torch.full((1000,), float(number)))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(bool((file.get(place) == number).all()) for number, place in places.items())
    file.close()


def test_short_writes_and_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:3], at))
    monkeypatch.setattr(os, "pread", lambda fd, count, at: read(fd, min(count, 5), at))
    file = SpillFile(tmp_path)
    assert same_bits(file.get(file.put(TENSORS[0])), TENSORS[0])
    file.close()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = SpillFile(tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(WorkError, match=r"No space left on device.*free some space"):
        file.put(TENSORS[0])
    file.close()
    with pytest.raises(WorkError, match="No such file or directory"):
        SpillFile(tmp_path / "nowhere")


def test_a_file_that_ends_early_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SpillFile(tmp_path)
    place = file.put(TENSORS[0])
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    with pytest.raises(WorkError, match="ended early"):
        file.get(place)
    file.close()
