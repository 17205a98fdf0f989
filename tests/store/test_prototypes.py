"""Files of prototypes: what is written is read back, and others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from submerge.errors import RequestError, WorkError
from submerge.store import MomentFile, PrototypeFile, write_moments, write_prototypes

TENSORS = {"images": torch.arange(6.0).reshape(2, 3), "text": torch.ones(1, 4)}


def test_prototypes_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "task.safetensors"
    write_prototypes(path, TENSORS, 7, {"pooling": "mean"})
    file = PrototypeFile.open(path)
    assert file.shapes == {"images": (2, 3), "text": (1, 4)}
    assert (file.count, file.source) == (7, {"pooling": "mean"})
    assert all(torch.equal(file.tensor(name), tensor) for name, tensor in TENSORS.items())
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no such file of prototypes"):
        PrototypeFile.open(tmp_path / "nowhere.safetensors")
    write_moments(tmp_path / "moments.safetensors", {}, {})
    with pytest.raises(RequestError, match="is no file of prototypes"):
        PrototypeFile.open(tmp_path / "moments.safetensors")
    write_prototypes(tmp_path / "prototypes.safetensors", TENSORS, 1, {})
    with pytest.raises(RequestError, match="is no file of second moments"):
        MomentFile.open(tmp_path / "prototypes.safetensors")


def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="writing the prototypes failed"):
        write_prototypes(tmp_path / "file" / "task.safetensors", TENSORS, 1, {})
