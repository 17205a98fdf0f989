"""Gram matrices and eigenvectors for tests, from dense matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from _updates import matrix, normal
from submerge.algebra import Dense, Update

__all__ = ["decaying", "projector", "summed", "top"]


def summed(updates: Sequence[Update], side: str) -> torch.Tensor:
    parts = [matrix(u) for u in updates]
    return sum(x @ x.T if side == "left" else x.T @ x for x in parts)


def projector(vectors: torch.Tensor) -> torch.Tensor:
    return vectors @ vectors.T


def top(gram: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


def decaying(shape: tuple[int, int], power: float, seed: int) -> Update:
    """Return an update whose j-th singular value is j^(−power)."""
    k = min(shape)
    u = torch.linalg.qr(normal(seed, shape[0], k))[0]
    v = torch.linalg.qr(normal(seed + 1, shape[1], k))[0]
    return Dense((u * torch.arange(1, k + 1, dtype=torch.float64) ** -power) @ v.T)
