"""A parameter that members replace with values of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from submerge.gating._gate import Gate
from submerge.gating._gated_factors import GatedFactors
from submerge.gating._gated_update import GatedUpdate
from submerge.gating._layout import Group

__all__ = ["GatedValues"]


class GatedValues(GatedUpdate):
    """A parameter that some members replace: W_k = Θ_k, and what `factors` make of W_0 for the others.

    A group has the values of its first member that has any. Members that share one tensor share it here, too:
    no values are copied, and they move with the model once.

    Args:
        gate: what all gated modules of the model share.
        name: of the parameter.
        values: Θ_k by member, in the parameter's shape.
        factors: updates of members without values, which count from `base`; none: these have `base` itself.

    Examples:
        >>> import torch
        >>> from submerge.gating import Gate, GatedValues, Group, Recent
        >>> gain = GatedValues(Gate(Recent(0)), "norm.weight", {1: torch.tensor([2.0, 3.0])})
        >>> [gain.dense(torch.ones(2), Group((k,), 0, 5)).tolist() for k in (0, 1)]
        [[1.0, 1.0], [2.0, 3.0]]
    """

    def __init__(
        self,
        gate: Gate,
        name: str,
        values: Mapping[int, torch.Tensor],
        factors: GatedFactors | None = None,
    ) -> None:
        super().__init__(gate, name)
        self.factors = factors
        buffers: dict[int, str] = {}
        for tensor in values.values():
            buffer = buffers.setdefault(id(tensor), f"values{len(buffers)}")
            self.register_buffer(buffer, tensor, persistent=False)
        self.places: dict[int, str] = {member: buffers[id(tensor)] for member, tensor in values.items()}

    def dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        members = group.among(self.places).members
        if members:
            values: torch.Tensor = getattr(self, self.places[members[0]])
            return values.to(parameter.dtype)
        base = self.resident(parameter)
        return base if self.factors is None else self.factors.dense(base, group)

    def apart(self, parameter: torch.Tensor, group: Group) -> tuple[torch.Tensor, GatedFactors | None]:
        if self.factors is None or group.among(self.places).members:
            return self.dense(parameter, group), None
        return self.factors.apart(self.resident(parameter), group)
