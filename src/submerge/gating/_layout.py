"""The rows of an input in groups that get the same updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["Group", "Layout", "Span", "UnsplitError"]


class UnsplitError(Exception):
    """An input of a gated module has no rows that an assignment tells apart, so that it cannot be gated."""


@dataclass(frozen=True)
class Span:
    """Samples [start, stop) of the batch, and the members, in ascending order, whose updates they get."""

    members: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Rows [start, stop) of an arranged input, and the members whose updates they get.

    With `weights` [members] the update is Σ_k w_k Δ_k; without, the members are a set, which the update
    merges by a rule of its own.
    """

    members: tuple[int, ...]
    start: int
    stop: int
    weights: torch.Tensor | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def is_learned(self) -> bool:
        """Whether gradients flow to the weights, so that nothing that depends on them may be stored."""
        return self.weights is not None and self.weights.requires_grad

    def among(self, members: Mapping[int, Any]) -> Group:
        """Return the group with those of its members that are among the given ones."""
        if all(k in members for k in self.members):
            return self
        places = [i for i, k in enumerate(self.members) if k in members]
        weights = None if self.weights is None else self.weights[places]
        return replace(self, members=tuple(self.members[i] for i in places), weights=weights)


@dataclass(frozen=True)
class Layout:
    """The groups of an input's rows [N], without gaps, in an order in which each group is a slice.

    `order` [N] sorts the rows so, and `inverse` undoes it; None: they lie so.
    """

    groups: tuple[Group, ...]
    order: torch.Tensor | None = None
    inverse: torch.Tensor | None = None

    def arrange(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [N, …] group by group."""
        return rows if self.order is None else rows[self.order.to(rows.device)]

    def restore(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [N, …] that lie group by group in the order of the input."""
        return rows if self.inverse is None else rows[self.inverse.to(rows.device)]
