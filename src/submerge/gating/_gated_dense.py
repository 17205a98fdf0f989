"""Updates of a parameter that are dense, and those of several forms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import nn

from submerge.gating._gate import Gate
from submerge.gating._gated_update import GatedUpdate
from submerge.gating._layout import Group

__all__ = ["GatedDense", "GatedSum"]


class GatedDense(GatedUpdate):
    """A parameter of which each member has a dense update; a set of members gets their mean.

    Examples:
        >>> import torch
        >>> from submerge.gating import Gate, GatedDense, Group, Recent
        >>> bias = GatedDense(Gate(Recent(0)), "bias", {0: torch.tensor([1.0]), 1: torch.tensor([3.0])})
        >>> bias.dense(torch.zeros(1), Group((0, 1), 0, 5)).tolist()
        [2.0]
    """

    updates: torch.Tensor

    def __init__(self, gate: Gate, name: str, updates: Mapping[int, torch.Tensor]) -> None:
        super().__init__(gate, name)
        self.places: dict[int, int] = {member: place for place, member in enumerate(sorted(updates))}
        self.register_buffer("updates", torch.stack([updates[k] for k in sorted(updates)]), persistent=False)

    def update(self, group: Group) -> torch.Tensor | None:
        """Return what a group adds; None where that is nothing."""
        own = group.among(self.places)
        if not own.members:
            return None
        places = [self.places[k] for k in own.members]
        updates = self.updates if len(places) == len(self.places) else self.updates[places]
        if own.weights is not None:
            total: torch.Tensor = torch.tensordot(own.member_weights().to(updates), updates, dims=1)
            return total
        return updates.sum(0) / len(group.members)  # members that change nothing count in the mean

    def dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        if group.weights is not None:
            return self._dense(parameter, group)
        key: Hashable = (self.name, "dense", group.members, parameter.dtype, parameter.device)
        return self.gate.cache.found_or(key, lambda: self._dense(parameter, group))

    def _dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        base, update = self.resident(parameter), self.update(group)
        return base if update is None else base + update.to(base.dtype)


class GatedSum(GatedUpdate):
    """A parameter of which some members have factors, and others dense updates, or the same ones do."""

    def __init__(self, gate: Gate, name: str, terms: Sequence[GatedUpdate]) -> None:
        super().__init__(gate, name)
        self.terms = nn.ModuleList(terms)
        self.places = {k: number for number, term in enumerate(terms) for k in term.places}

    def dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        values = self.resident(parameter)
        for term in self.terms:
            values = term.dense(values, group)  # type: ignore[operator]
        return values
