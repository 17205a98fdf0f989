"""A parameter to which members add products of factors that no rows of inputs are multiplied by."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from submerge.gating._gate import Gate
from submerge.gating._gated_update import GatedUpdate
from submerge.gating._layout import Group

__all__ = ["GatedProducts"]


class GatedProducts(GatedUpdate):
    """A kernel of a convolution, or packed experts, with low-rank updates Δ_k = L_k R_k of the members.

    A group has W + Σ_k λ_k Δ_k, and without weights the mean. The products are made anew for each: of many
    experts they are far larger than the factors.

    Args:
        gate: what all gated modules of the model share.
        name: of the parameter.
        factors: by member L [.., m, r] and R [.., r, n], whose product has as many elements as the parameter.

    Examples:
        >>> import torch
        >>> from submerge.gating import Gate, GatedProducts, Group, Recent
        >>> ones = torch.ones(2, 3, 1), torch.ones(2, 1, 4)  # of two experts [3, 4]
        >>> experts = GatedProducts(Gate(Recent(0)), "experts.down_proj", {0: ones})
        >>> experts.dense(torch.zeros(2, 3, 4), Group((0,), 0, 5)).sum().item()
        24.0
    """

    def __init__(
        self, gate: Gate, name: str, factors: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        super().__init__(gate, name)
        self.places: dict[int, int] = {member: place for place, member in enumerate(sorted(factors))}
        for member, place in self.places.items():
            for side, factor in zip(("left", "right"), factors[member], strict=True):
                self.register_buffer(f"{side}{place}", factor, persistent=False)

    def dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        base, own = self.resident(parameter), group.among(self.places)
        if not own.members:
            return base
        values = base.to(torch.promote_types(base.dtype, torch.float32))
        weights = None if own.weights is None else own.member_weights()
        for number, member in enumerate(own.members):
            place = self.places[member]
            left, right = getattr(self, f"left{place}"), getattr(self, f"right{place}")
            weight = 1 / len(group.members) if weights is None else weights[number].to(values)
            values = values + weight * (left @ right).view_as(values)
        return values.to(base.dtype)
