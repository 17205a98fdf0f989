"""A chunk: the same run of elements of every model's update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

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
        draw: `draw(t)` returns n uniform numbers in [0, 1), float32, that depend only on the
            recipe's seed, the tensor's name, t and the position of each element.
    """

    start: int
    updates: torch.Tensor
    width: int
    finite: bool
    draw: Callable[[int], torch.Tensor]

    @property
    def rows(self) -> torch.Tensor:
        """The updates as [T, n / width, width]."""
        return self.updates.view(self.updates.shape[0], -1, self.width)
