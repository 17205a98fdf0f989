"""Files of a state's tensors: the same content in memory or written at once, and old files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from submerge import WorkError
from submerge.continual import _tensor_file
from submerge.continual._manifest import FileRecord
from submerge.continual._tensor_file import TensorFileWriter
from submerge.store import file_digest, read_header

TENSORS = {
    "a": torch.arange(5, dtype=torch.float32),
    "b": torch.arange(300, dtype=torch.bfloat16),
    "c": torch.arange(101, dtype=torch.float32),  # ends where a float64 may not begin
    "d": torch.arange(60, dtype=torch.float64),
    "e": torch.tensor(7.0, dtype=torch.float64),
}


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tensor_file, "LARGE", 400)
    monkeypatch.setattr(_tensor_file, "HEADER_ROOM", 2048)


def written(folder: Path) -> Path:
    with TensorFileWriter(folder, "tasks/one") as file:
        for name, tensor in TENSORS.items():
            assert file.add(name, tensor) == tensor.nbytes
        record = file.finish({"key": "value"})
    path = folder / record.file
    assert record.digest == file_digest(path)
    assert record.bytes == path.stat().st_size
    assert [one.name for one in path.parent.iterdir()] == [f"one-{record.digest[:16]}.safetensors"]
    return path


def check(path: Path) -> None:
    header = read_header(path)
    assert header.metadata == {"key": "value"}
    assert all(
        entry.offset % min(8, entry.nbytes // max(1, entry.numel)) == 0 for entry in header.entries.values()
    )
    found = load_file(path)
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)


def test_small_tensors_lie_by_type(tmp_path: Path) -> None:
    path = written(tmp_path)
    check(path)
    assert list(read_header(path).entries) == ["d", "e", "a", "c", "b"]


@pytest.mark.usefixtures("small_files")
def test_large_tensors_lie_as_they_came(tmp_path: Path) -> None:
    path = written(tmp_path)
    check(path)
    assert list(read_header(path).entries) == ["b", "c", "gap.2", "d", "e", "a"]


@pytest.mark.usefixtures("small_files")
def test_a_header_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tensor_file, "HEADER_ROOM", 64)
    with pytest.raises(WorkError, match="more tensors than one file has room for"):
        written(tmp_path)
    assert not list((tmp_path / "tasks").iterdir())


def stored(folder: Path, name: str) -> FileRecord:
    with TensorFileWriter(folder, f"tasks/{name}") as file:
        file.add("a", torch.ones(3))
        return file.finish({})


@pytest.mark.parametrize("names", [("law", "Law", "LAW"), ("LAW", "Law", "law")])
def test_files_of_one_content_differ_in_more_than_their_case(tmp_path: Path, names: tuple[str, ...]) -> None:
    records = [stored(tmp_path, name) for name in names]
    assert len({record.digest for record in records}) == 1
    assert len({record.file.lower() for record in records}) == 3
    assert [stored(tmp_path, name) for name in names] == records


def test_a_file_that_an_earlier_version_named_keeps_its_name_to_itself(tmp_path: Path) -> None:
    plain = stored(tmp_path, "law")
    path = tmp_path / plain.file
    before = path.rename(path.with_name(path.name.replace("law", "Law")))
    after = stored(tmp_path, "law")
    assert before.exists()
    assert after.file.lower() != plain.file
    assert after.digest == plain.digest
