"""Makes the inputs: LoRA adapters of noise in PEFT's form, and checkpoints whose updates have a spectrum."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.speed.models import SIZES as SPEED_SIZES
from benchmarks.speed.models import UPDATE_STD, Shape, make_models, normal

__all__ = ["CHECKPOINTS", "SIZES", "SPECTRA", "decaying", "make_adapters", "make_checkpoints", "modules"]

SIZES = {
    "7b": Shape(hidden=4096, intermediate=11008, layers=32, vocabulary=32000, heads=32, kv_heads=32),
    "tiny": Shape(hidden=64, intermediate=176, layers=2, vocabulary=320, heads=4, kv_heads=4),
}
"""Of the model that the adapters are for."""
CHECKPOINTS = {"7b": "1.1b", "tiny": "tiny"}
"""Size of the adapters -> size of the full checkpoints that go with them."""
SPECTRA = ("flat", "decaying")
RANK_SHARE, EXPONENT, FLOOR = 4, 0.7, 0.3
"""Of decaying updates: min(m, n) / 4 directions with s_i ∝ i^(−0.7), and noise with 30 % of the norm."""


def modules(shape: Shape) -> dict[str, tuple[int, int]]:
    """Return the full path of every linear map in the blocks -> [outputs, inputs]."""
    return {
        name.removesuffix(".weight"): (dims[0], dims[1])
        for name, dims in shape.tensors().items()
        if name.startswith("model.layers.") and len(dims) == 2
    }


def make_adapters(
    folder: Path, shape: Shape, count: int, rank: int, say: Callable[[str], None]
) -> list[Path]:
    """Return the folders of bf16 adapters whose factors are noise; makes those that are not there."""
    folders = [folder / f"adapter-{number}" for number in range(count)]
    for number, path in enumerate(folders):
        if path.exists():
            continue
        say(f"making {path.name} for {shape.layers} blocks")
        part = path.with_name(path.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": sorted({name.rsplit(".", 1)[1] for name in modules(shape)}),
            "bias": "none",
            "base_model_name_or_path": None,
        }
        (part / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {}
        for index, (name, (m, n)) in enumerate(modules(shape).items()):
            seed = 2 * (index + 10_000 * number)
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = normal((rank, n), n**-0.5, seed).bfloat16()
            tensors[f"{key}.lora_B.weight"] = normal((m, rank), 0.01, seed + 1).bfloat16()
        save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
        part.rename(path)
    return folders


def make_checkpoints(
    work: Path, size: str, spectrum: str, layers: int | None, say: Callable[[str], None]
) -> tuple[Shape, dict[str, Path]]:
    """Return the shape, and name -> folder of the models; the flat ones are those of `benchmarks.speed`."""
    shape = SPEED_SIZES[size]
    cut = shape if layers is None else replace(shape, layers=min(layers, shape.layers))
    name = size if cut == shape else f"{size}-{cut.layers}-layers"
    if spectrum == "flat":
        return cut, make_models(work / name, cut, say)
    return cut, make_models(work / f"{name}-decaying", cut, say, decaying)


def decaying(dims: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return an update of the flat one's norm: singular values that fall as a power, and noise."""
    if len(dims) < 2:
        return normal(dims, UPDATE_STD, seed)
    m, n = dims
    rank = max(1, min(dims) // RANK_SHARE)
    s = torch.arange(1, rank + 1) ** -EXPONENT
    left = normal((m, rank), m**-0.5, zlib.crc32(f"{seed} left".encode())) * s
    signal = left @ normal((rank, n), n**-0.5, zlib.crc32(f"{seed} right".encode()))
    signal *= UPDATE_STD * math.sqrt(m * n) / signal.norm()
    return math.sqrt(1 - FLOOR**2) * signal + FLOOR * normal(dims, UPDATE_STD, seed)
