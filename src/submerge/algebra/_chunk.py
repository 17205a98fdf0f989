"""A chunk: the same run of elements of every model's update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from submerge.algebra._random import coins, uniform

__all__ = ["Chunk"]


@dataclass(slots=True)
class Chunk:
    """A run of consecutive elements of one tensor, seen in every model at once.

    Attributes:
        start: index of the first element in the flattened tensor.
        updates: shape [T, n], float32 (float64 where an input is), one row a model. Its owner
            refills it for every pass, so a fold may overwrite it.
        width: the run length that the method asked for; n is a multiple of it.
        finite: whether every value of `updates` is finite.
        keys: for each model, the key of its stream of random numbers (see `algebra.stream_key`).
    """

    start: int
    updates: torch.Tensor
    width: int
    finite: bool
    keys: Sequence[int]

    @property
    def rows(self) -> torch.Tensor:
        """The updates as [T, n / width, width]."""
        return self.updates.view(self.updates.shape[0], -1, self.width)

    def draw(self, t: int) -> torch.Tensor:
        """Return a number in [0, 1) for each element [n], from the stream of model t."""
        return uniform(self.keys[t], self.start, self.updates.shape[1]).to(self.updates.device)

    def toss(self, t: int, probability: float) -> torch.Tensor:
        """Return 1 with this probability, else 0, for each element [n], from the stream of model t."""
        tossed = coins(self.keys[t], self.start, self.updates.shape[1], probability)
        return tossed.to(self.updates.device)
