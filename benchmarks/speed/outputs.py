"""What came out of a timed merge: a digest of all bytes, and some values to compare with another tool's."""

from __future__ import annotations

from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file

__all__ = ["Sample", "agreement", "digest", "load_sample", "sample", "save_sample", "spread"]

Sample = dict[str, torch.Tensor]
"""Tensor name -> some of its values, in float32."""
ONE_OF, LEAST = 4096, 16
"""A sample has one of so many values of each tensor, and at least so many."""
READ = 1 << 24
NEAR = {"bfloat16": 2**-6, "float32": 1e-5}
"""Two values agree up to this share of them. In bfloat16 it is two steps of the format."""


def digest(folder: Path) -> str:
    """Return a digest of all weights files of a folder."""
    total = xxhash.xxh3_128()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while data := file.read(READ):
                total.update(data)
    return total.hexdigest()


def sample(folder: Path) -> Sample:
    """Return values of every tensor of a folder, evenly spread over its elements: the same of every tool."""
    values = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 # a file is no mapping
                values[name] = spread(file.get_tensor(name))
    return values


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """Return one of so many values of a tensor, in float32."""
    count = min(tensor.numel(), max(LEAST, tensor.numel() // ONE_OF))
    return tensor.flatten()[torch.arange(count) * tensor.numel() // max(count, 1)].float()


def save_sample(values: Sample, path: Path) -> None:
    """Write a sample, for a later run to compare with."""
    save_file(values, path)


def load_sample(path: Path) -> Sample | None:
    """Return a sample that was written, or None."""
    return load_file(path) if path.exists() else None


def agreement(ours: Sample, theirs: Sample, dtype: str) -> float:
    """Return the share of sampled values that two tools have in common, up to their roundings.

    These are relative to the value, or to the tensor's root mean square where the value is smaller: it comes
    from larger ones that cancel. Tools round in another order, and select otherwise among entries that tie.
    """
    if ours.keys() != theirs.keys():
        return 0.0
    near = total = 0
    for name, one in ours.items():
        other = theirs[name]
        size = torch.maximum(other.abs(), other.square().mean().sqrt())
        near += int(((one - other).abs() <= NEAR[dtype] * size).sum())
        total += other.numel()
    return near / max(total, 1)
