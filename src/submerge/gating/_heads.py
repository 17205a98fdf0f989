"""The module that ends in the members' outputs, of several widths side by side.

Outputs of all K members are [rows, .., K, C], where C is the widest's number of outputs, and −inf stands
where a member has none. What is returned of them depends on who asks:

    a sample's first member    [rows, .., C]         `Heads`
    a sample's members         [rows, .., K · C]     `CompetingHeads`: −inf for the others (see `best_head`)
    every member               [rows, .., K · C]     either, where the assignment asks for every branch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from submerge.gating._assignment import Assignment
from submerge.gating._branches import Branches
from submerge.gating._gate import Gate
from submerge.gating._layout import Span

__all__ = ["CompetingHeads", "Heads", "best_head", "head_width"]


class Heads(Branches):
    """The members' heads, of which a sample gets that of its first member, filled up with −inf.

    Heads that are one linear map are one product for all members. `alone` says that members have no other
    modules of their own, before this one. `widths` are the members' numbers of outputs.
    """

    index: torch.Tensor
    competing = False

    def __init__(
        self, gate: Gate, module: nn.Module, sets: Sequence[Mapping[str, torch.Tensor]], *, alone: bool
    ) -> None:
        super().__init__(gate, sets)
        self.alone = alone
        self.is_linear = type(module).forward is nn.Linear.forward
        self.widths = [head_width(parameters) for parameters in sets]
        self.width = max(self.widths)
        end = sum(self.widths)  # one past the last output of all is −inf
        starts = [sum(self.widths[:k]) for k in range(len(sets))]
        places = [
            [start + c if c < width else end for c in range(self.width)]
            for start, width in zip(starts, self.widths, strict=True)
        ]
        self.register_buffer("index", torch.tensor(places), persistent=False)

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        assignment = self.gate.assignment
        if self._entered or assignment is None or not (assignment.leads or assignment.every_branch):
            return super().forward(module, *args, **kwargs)
        if assignment.every_branch:
            outputs = self._outputs(module, range(self.count), args, kwargs)
            return outputs[..., self.index].flatten(-2)
        return self._chosen(module, assignment, args, kwargs)

    def _chosen(self, module: nn.Module, assignment: Assignment, args: Any, kwargs: Any) -> torch.Tensor:
        """Return the outputs of each sample's first member, [rows, .., C]."""
        leads = assignment.leads
        outputs = self._outputs(module, _members(leads), args, kwargs)
        each = len(outputs) // leads[-1].stop
        sizes = torch.tensor([span.size * each for span in leads])
        lead = torch.tensor([span.members[0] for span in leads]).repeat_interleave(sizes)  # [rows]
        index = self.index[lead.to(self.index.device)]  # [rows, C]
        index = index.view(len(lead), *[1] * (outputs.ndim - 2), self.width)
        return outputs.gather(-1, index.expand(*outputs.shape[:-1], self.width))

    def _outputs(self, module: nn.Module, wanted: Sequence[int], args: Any, kwargs: Any) -> torch.Tensor:
        """Return the outputs of all members without gaps, and −inf after the last, [rows, .., Σ widths + 1].

        Those of members that are not wanted may be anything.
        """
        if self.is_linear:
            x = args[0] if args else next(iter(kwargs.values()))
            outputs = F.linear(x, *self._stacked())
        else:
            of_member = {k: self.run(module, k, args, kwargs) for k in wanted}
            like = next(iter(of_member.values()))
            missing = [like.new_zeros(*like.shape[:-1], width) for width in self.widths]
            outputs = torch.cat([of_member.get(k, missing[k]) for k in range(self.count)], dim=-1)
        return F.pad(outputs, (0, 1), value=-torch.inf)

    def _stacked(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weights of all members, which are linear maps, one below the other; and the biases."""
        sets = [self.parameters_of(k) for k in range(self.count)]
        weight = torch.cat([parameters["weight"] for parameters in sets])
        if not any("bias" in parameters for parameters in sets):
            return weight, None
        zeros = [weight.new_zeros(width) for width in self.widths]
        return weight, torch.cat([p.get("bias", zero) for p, zero in zip(sets, zeros, strict=True)])


class CompetingHeads(Heads):
    """The heads of all members of a sample, side by side: the best can be taken where outputs are final."""

    competing = True

    def _chosen(self, module: nn.Module, assignment: Assignment, args: Any, kwargs: Any) -> torch.Tensor:
        """Return the outputs of each sample's members, [rows, .., K · C], and −inf for the others."""
        spans = assignment.spans
        outputs = self._outputs(module, _members(spans), args, kwargs)[..., self.index]  # [rows, .., K, C]
        allowed = torch.zeros(spans[-1].stop, self.count, dtype=torch.bool, device=outputs.device)
        for span in spans:
            allowed[span.start : span.stop, list(span.members)] = True
        allowed = allowed.repeat_interleave(len(outputs) // len(allowed), dim=0)
        shape = (len(outputs), *[1] * (outputs.ndim - 3), self.count, 1)
        return outputs.masked_fill(~allowed.view(shape), -torch.inf).flatten(-2)


def _members(spans: Sequence[Span]) -> list[int]:
    return sorted({member for span in spans for member in span.members})


def head_width(parameters: Mapping[str, torch.Tensor]) -> int:
    """Return how many outputs a head has: the rows of its last weight, in the order of its parameters.

    Examples:
        >>> import torch
        >>> from submerge.gating import head_width
        >>> head_width({"weight": torch.zeros(3, 8), "bias": torch.zeros(3)})
        3
    """
    weights = [p for p in parameters.values() if p.ndim > 1] or list(parameters.values())
    return weights[-1].shape[0]


def best_head(logits: torch.Tensor, count: int, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs [B, .., C] of the head with the largest (`max` or mean) output, and its member [B].

    For outputs [B, .., count · C] side by side with −inf where there is none.

    Examples:
        >>> import torch
        >>> from submerge.gating import best_head
        >>> best, member = best_head(torch.tensor([[0.1, 0.2, 0.9, 0.3]]), 2, "max")
        >>> member.tolist(), [round(x, 1) for x in best[0].tolist()]
        ([1], [0.9, 0.3])
    """
    outputs = logits.reshape(*logits.shape[:-1], count, -1)
    flat = outputs.movedim(-2, 1).flatten(2)  # [B, K, all of the member's outputs]
    if how == "max":
        score = flat.amax(-1)
    else:
        real = flat.isfinite()
        score = flat.masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp(min=1)
        score = score.masked_fill(~real.any(-1), -torch.inf)
    member = score.argmax(-1)
    index = member.view(-1, *[1] * (outputs.ndim - 1)).expand(*outputs.shape[:-2], 1, outputs.shape[-1])
    return outputs.gather(-2, index).squeeze(-2), member
