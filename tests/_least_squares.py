"""Tasks for tests of least-squares merges: inputs, updates, and the merge from its plain formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from _updates import adapters, full, matrix, normal
from submerge.algebra import BlockMoment, LpmOptions, Update

PLAIN = LpmOptions(ridge=0.0, normalize="sum")
"""Least squares as they are: nothing is normalised, and there is no ridge."""


@dataclass(frozen=True)
class Tasks:
    """Inputs X_t [N_t, n] of several tasks, and their updates [m, n]."""

    inputs: list[torch.Tensor]
    updates: list[Update]

    @property
    def moments(self) -> list[BlockMoment]:
        return [BlockMoment.of(x) for x in self.inputs]

    def chosen(self, numbers: Sequence[int]) -> Tasks:
        return Tasks([self.inputs[t] for t in numbers], [self.updates[t] for t in numbers])


def make_tasks(seed: int, count: int = 3, *, low_rank: bool = True, n: int = 12) -> Tasks:
    """Return tasks with 20 to 40 rows each, whose inputs have channels of different sizes."""
    sizes = torch.logspace(-1, 1, n, dtype=torch.float64)
    inputs = [normal(seed + 100 + t, 20 + 7 * t, n) * sizes for t in range(count)]
    updates = adapters((9, n), [1 + t % 3 for t in range(count)], seed) if low_rank else full((9, n), count)
    return Tasks(inputs, updates)


def batch(tasks: Tasks, ridge: float = 0.0, weights: Sequence[float] | None = None) -> torch.Tensor:
    """Return (Σ w_t Δ_t C_t) (Σ w_t C_t)⁻¹ with C_t = X_tᵀX_t + ridge tr(X_tᵀX_t)/n I."""
    n = tasks.inputs[0].shape[1]
    moments = [x.T @ x for x in tasks.inputs]
    moments = [c + ridge * c.trace() / n * torch.eye(n, dtype=torch.float64) for c in moments]
    moments = [w * c for w, c in zip(weights or [1.0] * len(moments), moments, strict=True)]
    sums = sum(matrix(u) @ c for u, c in zip(tasks.updates, moments, strict=True))
    assert isinstance(sums, torch.Tensor)
    phi = torch.stack(moments).sum(0)
    return torch.linalg.solve(phi, sums.T).T
