"""Elastic weight consolidation (Kirkpatrick et al. 2017): what mattered for earlier tasks changes less.

    loss + λ/2 Σ_i F_i (θ_i − θ*_i)²

θ* are the values after the last task, and F_i, the Fisher information, is summed over the tasks so far: the
mean of the squared gradients of single questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

__all__ = ["Elastic"]

FILE = "fisher.safetensors"


@dataclass(frozen=True)
class Elastic:
    """λ, and of how many questions of a task the Fisher information is taken."""

    strength: float = 1000.0
    samples: int = 48

    def config(self) -> dict[str, Any]:
        """Return all numbers, for a marker or a report."""
        return asdict(self)

    def penalty(
        self,
        named: Mapping[str, nn.Parameter],
        losses: Sequence[Callable[[], torch.Tensor]],
        start: Path,
        folder: Path,
    ) -> Callable[[], torch.Tensor]:
        """Return the penalty, as a function of the parameters' values.

        `losses` are those of single questions of the last task, at the parameters of the folder `start`. What
        matters for all tasks so far is written to `folder`, for the next one.
        """
        fisher = self._fisher(named, losses)
        if (start / FILE).exists():
            fisher = {name: fisher[name] + one for name, one in load_file(start / FILE).items()}
        save_file(fisher, folder / FILE)
        before = {name: weight.detach().clone() for name, weight in named.items()}

        def penalty() -> torch.Tensor:
            terms = [(fisher[name] * (named[name] - before[name]).square()).sum() for name in named]
            return self.strength / 2 * torch.stack(terms).sum()

        return penalty

    @staticmethod
    def _fisher(
        named: Mapping[str, nn.Parameter], losses: Sequence[Callable[[], torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        fisher = {name: torch.zeros_like(weight) for name, weight in named.items()}
        for loss in losses:
            gradients = torch.autograd.grad(loss(), list(named.values()))
            for name, gradient in zip(named, gradients, strict=True):
                fisher[name] += gradient.square() / len(losses)
        return fisher
