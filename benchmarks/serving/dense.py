"""MASS as the authors' code does it: two complete passes, and for each set of tasks a model of its own.

for each set S of a batch:  θ_S = θ_0 + polar(U_S) diag(s_S) polar(V_S), by SVDs;  a copy of the model runs
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from submerge.algebra import Triplets
from submerge.serving import open_folder

__all__ = ["ModelPerSet"]


class ModelPerSet:
    """The base, and every task's updates, as factors or of entire parameters, from a folder's bank."""

    def __init__(self, base: Any, merged: Any, folder: Path) -> None:
        self.base, self.merged, self.bank = base, merged, open_folder(folder)

    def model(self, tasks: tuple[int, ...]) -> Any:
        """Return a copy of the base with the merge of a set of tasks."""
        model = copy.deepcopy(self.base)
        state = model.state_dict()
        for name, updates in self.bank.dense.items():
            if name in state and (parts := [updates[t] for t in tasks if t in updates]):
                state[name] += torch.stack(parts).sum(0) / len(tasks)
        for name, factors in self.bank.factors.items():
            if name in state and (triplets := [factors[t] for t in tasks if t in factors]):
                state[name] += _merged(triplets)
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


def _merged(triplets: list[Triplets]) -> torch.Tensor:
    left, right = torch.cat([one.left for one in triplets], 1), torch.cat([one.right for one in triplets])
    return _polar(left) @ torch.diag(torch.cat([one.values for one in triplets])) @ _polar(right.T).T


def _polar(x: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh
