"""Updates of the LM's linear maps: low-rank to train, dense to try out, adapters' folders on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import linear

from submerge.algebra import Dense, LowRank
from submerge.store import AdapterWriter, FileTable, is_adapter, open_adapter

__all__ = ["Updates", "dense", "linears", "load_adapter", "new", "parameters", "product", "save_adapter"]

Updates = Mapping[str, LowRank | Dense]
"""Module -> its update, shape [m, n]. Factors that are trained are parameters."""


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield name and module of all linear maps in the decoder's blocks."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in f".{name}":
            yield name, module


def new(model: nn.Module, rank: int, seed: int) -> dict[str, LowRank]:
    """Return B A to train: A normal with variance 4 / n, the same for the same seed; B zero."""
    draw = torch.Generator().manual_seed(seed)
    updates = {}
    for name, module in linears(model):
        n, m = module.in_features, module.out_features
        a = torch.randn(rank, n, generator=draw) * 2 / n**0.5
        updates[name] = LowRank(nn.Parameter(torch.zeros(m, rank)), nn.Parameter(a))
    return updates


def parameters(updates: Mapping[str, LowRank]) -> list[nn.Parameter]:
    """Return what is trained."""
    return [p for one in updates.values() for p in (one.right, one.left) if isinstance(p, nn.Parameter)]


def product(update: LowRank | Dense, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return Δ x for rows x, shape […, m]; zero where the mask, shape […, 1], is zero."""
    if isinstance(update, LowRank):
        inner = linear(x, update.right)
        return linear(inner if mask is None else inner * mask, update.left)
    return linear(x if mask is None else x * mask, update.matrix)


def save_adapter(updates: Mapping[str, LowRank], folder: Path, base: Path) -> Path:
    """Write a LoRA adapter in PEFT's form, with scale 1; return its folder."""
    with AdapterWriter(folder) as writer:
        for name, update in updates.items():
            writer.add(f"{name}.weight", update.left.detach(), update.right.detach())
        return writer.finish(base=base.name, task_type="CAUSAL_LM")  # no path of one machine


def load_adapter(folder: Path, train: bool = False) -> dict[str, LowRank]:
    """Return the updates of an adapter in the order of names, as parameters if they are to be trained on."""
    adapter, updates = open_adapter(str(folder)), {}
    with FileTable() as table:
        for name in sorted(adapter.parts):
            left, right = adapter.factors(name, table)
            if train:
                left, right = nn.Parameter(left), nn.Parameter(right)
            updates[name.removesuffix(".weight")] = LowRank(left, right)
    return updates


def dense(folder: Path, model: nn.Module) -> dict[str, Dense]:
    """Return ΔW of every linear map: from an adapter's folder, or from a checkpoint's, minus the model."""
    if is_adapter(folder):
        return {name: Dense(one.dense()) for name, one in load_adapter(folder).items()}
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    return {
        name: Dense(tensors[f"{name}.weight"] - module.weight.detach()) for name, module in linears(model)
    }
