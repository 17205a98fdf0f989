"""A plain implementation of NSC's equations (arXiv 2603.26317), as one would write them down.

* Each adapted linear map is a module that adds K branches, y = W x + Σ_k λ_k s_k B_k (A_k x), as PEFT adds
  several adapters; λ_k is a parameter of the module.
* Each hooked module (those with adapters in the last quarter of the blocks) has the explicit projector
  P_N = I − A_kᵀ (A_k A_kᵀ)⁻¹ A_k [n, n] of each task, and ω = ‖P_N x‖ / ‖x‖ of its inputs.
* A step is, for each task k, a forward pass of the model with its head, and a backward pass of Ω_k / K; then
  one step of AdamW on λ. All parameters require gradients, as those of a model that was loaded do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from submerge.store import Adapter, FileTable, open_adapter

__all__ = ["PlainCalibration"]


class BranchedLinear(nn.Module):
    """A linear map with one branch an adapter."""

    def __init__(self, base: nn.Module, ups: Sequence[torch.Tensor], downs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.base = base
        self.ups, self.downs = (nn.ParameterList([t.clone() for t in ts]) for ts in (ups, downs))
        self.scales = nn.ParameterList([torch.tensor(0.4) for _ in ups])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        for scale, up, down in zip(self.scales, self.ups, self.downs, strict=True):
            y = y + scale * (x @ down.T @ up.T)
        return y


class PlainCalibration:
    """Steps of AdamW on the scales of adapters at a model."""

    def __init__(
        self, model: nn.Module, adapters: Sequence[Path], hooked: Sequence[str], rate: float
    ) -> None:
        self.model, self.hooked = model, hooked
        self.branched = _branched(model, [open_adapter(str(folder)) for folder in adapters])
        self.projectors = {
            name: [_projector(down.detach()) for down in self.branched[name].downs] for name in hooked
        }
        scales = [scale for module in self.branched.values() for scale in module.scales]
        self.optimiser = torch.optim.AdamW(scales, lr=rate, weight_decay=0.0)

    def step(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> float:
        """Take a step on one batch a task; return the loss before it."""
        total = 0.0
        for k, batch in enumerate(batches):
            loss = self.omega(k, batch) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self.optimiser.step()
        self.model.zero_grad()
        return total

    def omega(self, k: int, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return Ω_k, the mean over hooked modules of the mean ω over all positions of a batch."""
        ratios = []

        def note(name: str, x: torch.Tensor) -> None:
            projected = x @ self.projectors[name][k]
            ratios.append((projected.norm(dim=-1) / x.norm(dim=-1)).mean())

        handles = [
            self.branched[name].register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
            for name in self.hooked
        ]
        self.model(**batch)
        for handle in handles:
            handle.remove()
        return torch.stack(ratios).mean()


def _branched(model: nn.Module, adapters: Sequence[Adapter]) -> dict[str, BranchedLinear]:
    """Put a module with branches in the place of each that the adapters change; return them by name."""
    branched = {}
    with FileTable() as table:
        for name, factors in _factors(adapters, table):
            path, _, local = name.rpartition(".")
            base = model.get_submodule(name)
            module = BranchedLinear(base, [up for up, _ in factors], [down for _, down in factors])
            setattr(model.get_submodule(path), local, module)
            branched[name] = module
    return branched


def _factors(adapters: Sequence[Adapter], table: FileTable) -> Iterator[tuple[str, list[Any]]]:
    for parameter in adapters[0].parts:
        yield parameter.removesuffix(".weight"), [one.factors(parameter, table) for one in adapters]


def _projector(down: torch.Tensor) -> torch.Tensor:
    """Return I − Aᵀ (A Aᵀ)⁻¹ A [n, n] of A [r, n]."""
    a = down.double()
    return (torch.eye(a.shape[1], dtype=a.dtype) - a.T @ torch.linalg.solve(a @ a.T, a)).float()
