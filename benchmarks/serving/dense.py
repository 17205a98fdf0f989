"""MASS as the authors' code does it: two complete passes, and for each set of tasks a model of its own.

for each set S of a batch:  θ_S = θ_0 + polar(U_S) diag(s_S) polar(V_S), by SVDs;  a copy of the model runs
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

__all__ = ["ModelPerSet"]


class ModelPerSet:
    """The base, and every task's updates, as factors or of entire parameters, from a folder's bank."""

    def __init__(self, base: Any, merged: Any, folder: Path) -> None:
        self.base, self.merged = base, merged
        self.tasks: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
        for name, tensor in load_file(folder / "bank.safetensors").items():
            kind, number, rest = name.split(".", 2)
            key, _, part = rest.rpartition(".")
            if kind == "tasks":
                self.tasks.setdefault(key, {}).setdefault(int(number), {})[part] = tensor

    def model(self, tasks: tuple[int, ...]) -> Any:
        """Return a copy of the base with the merge of a set of tasks."""
        model = copy.deepcopy(self.base)
        state = model.state_dict()
        for name, each in self.tasks.items():
            parts = [each[t] for t in tasks if t in each]
            if name in state and parts:
                state[name] += _merged(parts, len(tasks))
        return model

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, torch.Tensor], chosen: list[tuple[int, ...]]) -> torch.Tensor:
        """Run the first pass, whose choice is given, and then each set's model on its samples."""
        self.merged(**batch)
        hidden = torch.empty(len(chosen), *batch["input_ids"].shape[1:], self.base.config.hidden_size)
        for tasks in sorted(set(chosen)):
            which = torch.tensor([i for i, one in enumerate(chosen) if one == tasks])
            part = {name: tensor[which] for name, tensor in batch.items()}
            hidden[which] = self.model(tasks)(**part).last_hidden_state
        return hidden


def _merged(parts: list[dict[str, torch.Tensor]], count: int) -> torch.Tensor:
    if "whole" in parts[0]:
        return torch.stack([part["whole"] for part in parts]).sum(0) / count
    left = torch.cat([part["left"] for part in parts], dim=1)
    right = torch.cat([part["right"] for part in parts])
    return _polar(left) @ torch.diag(torch.cat([part["values"] for part in parts])) @ _polar(right.T).T


def _polar(x: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh
