"""The rows of an input in groups that get the same updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

__all__ = ["Group", "Layout", "Span", "UnsplitError", "Weights"]

Weights: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
"""A weight for each member [members], or, member by member, those of its rank-one units [r_k]."""


class UnsplitError(Exception):
    """An input of a gated module has no rows that an assignment tells apart, so that it cannot be gated."""


@dataclass(frozen=True)
class Span:
    """Samples [start, stop) of the batch, and the members, in ascending order, whose updates they get.

    Examples:
        >>> from submerge.gating import Span
        >>> Span((0, 2), 3, 5).size
        2
    """

    members: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Rows [start, stop) of an input, taken group by group, and the members whose updates they get.

    `resident` rows keep the module's own parameters, whatever the updates of other groups count from.
    With `weights` the update is Σ_k w_k Δ_k, or Σ_k Σ_i w_ki u_ki v_kiᵀ with weights of rank-one units;
    without, the members are a set, which the update merges by a rule of its own.

    Examples:
        >>> import torch
        >>> from submerge.gating import Group
        >>> group = Group((0,), 1, 3)
        >>> group.size, group.of(torch.arange(4)).tolist(), group.resident
        (2, [1, 2], False)
    """

    members: tuple[int, ...]
    start: int
    stop: int
    weights: Weights | None = None
    resident: bool = False

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def is_learned(self) -> bool:
        """Whether gradients flow to the weights, so that nothing that depends on them may be stored."""
        weights = (self.weights,) if isinstance(self.weights, torch.Tensor) else self.weights or ()
        return any(weight.requires_grad for weight in weights)

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the group's share of such rows [N, …]: a view, or the rows themselves if it has all.

        Autograd copies the gradient of all rows for each view that is written to.
        """
        return rows if self.size == len(rows) else rows[self.rows]

    def among(self, members: Mapping[int, Any]) -> Group:
        """Return the group with those of its members that are among the given ones."""
        if all(k in members for k in self.members):
            return self
        places = [i for i, k in enumerate(self.members) if k in members]
        if isinstance(weights := self.weights, tuple):
            weights = tuple(weights[i] for i in places)
        elif weights is not None:
            weights = weights[places]
        return replace(self, members=tuple(self.members[i] for i in places), weights=weights)

    def unit_weights(self, ranks: Sequence[int]) -> torch.Tensor:
        """Return the weights of all rank-one units [Σ r_k], for the ranks r_k of the members.

        One weight in the place of r_k is that of all units.
        """
        if isinstance(self.weights, tuple):
            return torch.cat([own.expand(rank) for own, rank in zip(self.weights, ranks, strict=True)])
        assert self.weights is not None
        counts = torch.tensor(ranks, device=self.weights.device)
        return self.weights.repeat_interleave(counts, output_size=sum(ranks))

    def member_weights(self) -> torch.Tensor:
        """Return one weight a member [members]: the mean of its units' where these have some of their own."""
        if isinstance(self.weights, tuple):
            return torch.stack([weight.mean() for weight in self.weights])
        assert self.weights is not None
        return self.weights


@dataclass(frozen=True)
class Layout:
    """The groups of an input's rows [N], without gaps.

    Each group is a slice of the rows as they lie, or, with `places`, where its rows are picked out of them: a
    place is a slice where they lie together, else the numbers of the rows.

    Examples:
        >>> from submerge.gating import Group, Layout
        >>> Layout((Group((0,), 0, 2), Group((1,), 2, 3))).is_resident
        False
    """

    groups: tuple[Group, ...]
    places: tuple[slice | torch.Tensor, ...] = ()

    @property
    def is_resident(self) -> bool:
        """Whether all rows keep the module's own parameters."""
        return all(group.resident for group in self.groups)

    def places_on(self, device: torch.device) -> list[slice | torch.Tensor]:
        """Return the places of all groups for rows on a device: parts of a model may lie on several."""
        return [place if isinstance(place, slice) else place.to(device) for place in self.places]
