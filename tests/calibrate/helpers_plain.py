"""NSC as its equations say, in plain torch: dense merged weights, explicit projectors, full passes, AdamW."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from calibrate.helpers_null_space import all_inputs

Key = tuple[str, int]
Batch = Mapping[str, torch.Tensor]


def factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return A_k and s_k B_k of each module, as PEFT's files and configuration say."""
    config = json.loads((folder / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
    tensors = {
        name: tensor.double() for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    stems = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        stem.removeprefix("base_model.model."): (
            tensors[f"{stem}.lora_A.weight"],
            scale * tensors[f"{stem}.lora_B.weight"],
        )
        for stem in stems
    }


@dataclass
class Plain:
    """A model in float64, adapters, and hooks: the loss of batches for coefficients by module and adapter."""

    model: Any
    folders: Sequence[Path]
    hooks: Sequence[str]

    def __post_init__(self) -> None:
        self.factors = [factors(folder) for folder in self.folders]
        self.model.requires_grad_(False).eval()

    @property
    def keys(self) -> list[Key]:
        return [(path, k) for k, own in enumerate(self.factors) for path in own]

    def weights(self, scales: Mapping[Key, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return W + Σ_k λ_k s_k B_k A_k of each module that adapters change."""
        weights: dict[str, torch.Tensor] = {}
        for (path, k), scale in scales.items():
            a, b = self.factors[k][path]
            name = f"{path}.weight"
            weight = weights.get(name, self.model.get_parameter(name))
            transposed = type(self.model.get_submodule(path)).__name__ == "Conv1D"
            weights[name] = weight + scale * ((b @ a).T if transposed else b @ a)
        return weights

    def rows(self, scales: Mapping[Key, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Return the inputs of the hooked modules at the positions without padding."""
        inputs = {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
        return all_inputs(self.model, self.hooks, inputs, self.weights(scales))

    def task(self, k: int, scales: Mapping[Key, torch.Tensor], batch: Batch, objective: str) -> torch.Tensor:
        rows = self.rows(scales, batch)
        single = self.rows({key: torch.ones(()) for key in self.keys if key[1] == k}, batch)
        terms = []
        for path in (path for path in self.hooks if path in self.factors[k] and path in rows):
            x, a = rows[path], self.factors[k][path][0]
            projected = x @ (torch.eye(a.shape[1], dtype=torch.float64) - torch.linalg.pinv(a) @ a)
            terms.append(
                {
                    "null_space": (projected.norm(dim=-1) / x.norm(dim=-1)).mean(),
                    "energy": projected.square().sum() / x.square().sum(),
                    "match": (x - single[path]).square().sum() / single[path].square().sum(),
                }[objective]
            )
        return torch.stack(terms).mean()

    def loss(
        self, scales: Mapping[Key, torch.Tensor], batches: Sequence[Batch], objective: str = "null_space"
    ) -> torch.Tensor:
        tasks = [self.task(k, scales, batch, objective) for k, batch in enumerate(batches)]
        return torch.stack(tasks).mean()

    def learn(
        self, batches: Sequence[Sequence[Batch]], objective: str = "null_space", **adamw: float
    ) -> tuple[list[float], dict[Key, float]]:
        """Return the losses and the coefficients: one step with each of `batches` but the last."""
        scales = {key: torch.tensor(0.4, dtype=torch.float64, requires_grad=True) for key in self.keys}
        optimiser = torch.optim.AdamW(scales.values(), **adamw)
        losses = []
        for number, own in enumerate(batches, 1):
            loss = self.loss(scales, own, objective)
            losses.append(loss.item())
            if number < len(batches):
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return losses, {key: scale.item() for key, scale in scales.items()}
