"""Tensors in fewer bytes: each number as it was, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from continual.conftest import Tasks
from continual.test_continual import exported, grown
from submerge.continual._packed import packed, unpacked
from submerge.continual._tensor_file import TensorFileWriter, read_tensor
from submerge.errors import RequestError
from submerge.store import FileTable, file_digest, read_header

BITS = {torch.bfloat16: 10.8, torch.float16: 13.6, torch.float32: 26.8, torch.float64: 58.8}
"""At most, of a number of normally distributed ones."""


def written(folder: Path, tensor: torch.Tensor) -> torch.Tensor:
    (folder / "tasks").mkdir()
    with TensorFileWriter(folder, "tasks/one") as file:
        file.add_packed("maps.q.B", tensor)
        record = file.finish({})
    with FileTable() as table:
        entries = read_header(folder / record.file).entries
        return unpacked(entries, "maps.q.B", lambda entry: read_tensor(entry, table))


@pytest.mark.parametrize("dtype", list(BITS))
def test_each_bit_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(64, 700, generator=torch.Generator().manual_seed(0)).to(dtype)
    limits = torch.finfo(dtype)
    values[0, :6] = torch.tensor([0.0, -0.0, 1e-7, limits.min, limits.max, limits.tiny], dtype=dtype)
    found = written(tmp_path, values.T)
    assert (found.dtype, found.shape) == (dtype, (700, 64))
    assert torch.equal(found.view(torch.uint8), values.T.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", list(BITS))
def test_it_takes_fewer_bytes(dtype: torch.dtype) -> None:
    values = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    nbytes = sum(part.nbytes for part in packed("B", 0.01 * values).values())
    assert 8 * nbytes / values.numel() <= BITS[dtype]


def test_numbers_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"maps\.q\.B has NaN or Inf"):
        written(tmp_path, torch.tensor([[float("inf")]]))


def test_a_state_of_an_earlier_version_is_read(made: Tasks, tmp_path: Path) -> None:
    state = grown(made, tmp_path / "state", "law", "poems", keep="none")
    assert json.loads((tmp_path / "state/state.json").read_text())["version"] == 4
    wanted = exported(state, tmp_path / "a")
    for name in ("law", "poems"):
        as_before(tmp_path / "state", name)
    assert exported(state, tmp_path / "b") == wanted
    _, model, data = made.of("law")
    state.remove("law", model=model, data=data)
    assert json.loads((tmp_path / "state/state.json").read_text())["version"] == 1


def as_before(state: Path, task: str) -> None:
    """Make a task's file what a version wrote that knew of no packed tensors."""
    (path,) = (state / "tasks").glob(f"{task}-*.safetensors")
    header = read_header(path)
    with FileTable() as table:
        names = {key.removesuffix(".uppermost") for key in header.entries if key.endswith(".uppermost")}
        plain = {n: unpacked(header.entries, n, lambda entry: read_tensor(entry, table)) for n in names}
    kept = {n: t for n, t in load_file(path).items() if not any(n.startswith(f"{own}.") for own in names)}
    save_file({**kept, **plain}, path, dict(header.metadata))
    content = json.loads((state / "state.json").read_text())
    for record in content["tasks"]:
        record.pop("packed", None)
        if record["name"] == task:
            record |= {"bytes": path.stat().st_size, "digest": file_digest(path)}
    (state / "state.json").write_text(json.dumps({**content, "version": 1}))
