"""Updates of the LM's linear maps: low-rank to train, dense to try out, PEFT folders on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import linear

__all__ = [
    "Factors",
    "Updates",
    "adapter",
    "change",
    "dense",
    "factors",
    "linears",
    "parameters",
    "save_adapter",
]

_PEFT = "base_model.model."


@dataclass(frozen=True)
class Factors:
    """The update B A of one map, shapes [m, r] and [r, n]."""

    a: torch.Tensor
    b: torch.Tensor


Updates = Mapping[str, Factors | torch.Tensor]
"""Module -> its update: factors, or a dense matrix [m, n]."""


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield name and module of all linear maps in the decoder's blocks."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in f".{name}":
            yield name, module


def factors(model: nn.Module, rank: int, start: int) -> dict[str, Factors]:
    """Return factors to train: A normal with variance 4 / n, the same for the same `start`; B zero."""
    draw = torch.Generator().manual_seed(start)
    found = {}
    for name, module in linears(model):
        n, m = module.in_features, module.out_features
        a = torch.randn(rank, n, generator=draw) * 2 / n**0.5
        found[name] = Factors(nn.Parameter(a), nn.Parameter(torch.zeros(m, rank)))
    return found


def parameters(updates: Updates) -> list[nn.Parameter]:
    """Return what is trained."""
    return [p for one in updates.values() if isinstance(one, Factors) for p in (one.a, one.b)]  # type: ignore[misc]


def change(update: Factors | torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return Δ x for rows x, shape […, m]; zero where the mask, shape […, 1], is zero."""
    if isinstance(update, Factors):
        inner = linear(x, update.a)
        return linear(inner if mask is None else inner * mask, update.b)
    return linear(x if mask is None else x * mask, update)


def save_adapter(updates: Mapping[str, Factors], folder: Path, base: Path) -> Path:
    """Write a LoRA adapter in PEFT's form, with scale 1; return its folder."""
    from peft import LoraConfig

    rank = next(iter(updates.values())).a.shape[0]
    folder.mkdir(parents=True, exist_ok=True)
    LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted({name.rpartition(".")[2] for name in updates}),
        base_model_name_or_path=base.name,  # no path of one machine
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(folder)
    tensors = {}
    for name, one in updates.items():
        tensors[f"{_PEFT}{name}.lora_A.weight"] = one.a.detach().contiguous()
        tensors[f"{_PEFT}{name}.lora_B.weight"] = one.b.detach().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def adapter(folder: Path) -> dict[str, Factors]:
    """Return the updates of a PEFT adapter that has one rank and one scale."""
    import json

    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [key.removeprefix(_PEFT).removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key]
    return {
        name: Factors(
            tensors[f"{_PEFT}{name}.lora_A.weight"], scale * tensors[f"{_PEFT}{name}.lora_B.weight"]
        )
        for name in names
    }


def dense(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """Return ΔW of every linear map: from an adapter's folder, or from a checkpoint's, minus the model."""
    if (folder / "adapter_config.json").exists():
        return {name: one.b @ one.a for name, one in adapter(folder).items()}
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    return {name: tensors[f"{name}.weight"] - module.weight.detach() for name, module in linears(model)}
