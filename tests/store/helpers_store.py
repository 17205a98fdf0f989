"""Tiny checkpoints and hand-made safetensors files for the tests of the store."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file

from submerge.errors import RequestError
from submerge.store import Checkpoint, FileTable, open_checkpoint


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "model.embed_tokens.weight": torch.randn(7, 4, generator=draw).to(torch.bfloat16),
        "model.layers.0.mlp.weight": torch.randn(4, 4, generator=draw).to(torch.float16),
        "model.layers.1.mlp.weight": torch.randn(4, 4, generator=draw),
        "model.norm.weight": torch.randn(4, generator=draw),
        "model.count": torch.tensor(3),
    }


def raw_file(path: Path, table: Any, data: bytes = b"") -> Path:
    """Write a file with any header at all: an object to dump, or the bytes themselves."""
    body = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body + data)
    return path


def record(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write_single(
    folder: Path, seed: int = 0, config: dict[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    made = tensors(seed)
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return made


def write_sharded(folder: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    made = tensors(seed)
    names = list(made)
    weight_map = {}
    for number, group in enumerate((names[:2], names[2:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: made[name] for name in group}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(group, file))
    write_index(folder, weight_map)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return made


def write_index(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def messages(error: RequestError) -> str:
    return "\n".join(str(problem) for problem in error.problems)


SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(spec: object, **options: object) -> str:
    with pytest.raises(RequestError) as caught:
        open_checkpoint(str(spec), **options)  # type: ignore[arg-type]
    return messages(caught.value)


def read_all(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    found = {}
    with FileTable() as table:
        for name, entry in checkpoint.tensors.items():
            buffer = bytearray(entry.nbytes)
            checkpoint.source(name, table).read(0, entry.numel, memoryview(buffer))
            found[name] = bytes(buffer)
    return found  # type: ignore[return-value]


def raw(made: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in made.items()
    }
