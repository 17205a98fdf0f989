"""Which modules are given rows that are not those of one sample after another."""

from __future__ import annotations

import torch
from torch import nn

from submerge.serving._attach import is_unordered


class ToyExperts(nn.Module):
    """All experts in one parameter, given all tokens as they lie, and which of them each takes."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.zeros(2, 3, 3))

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return hidden


class ToyExpertMLP(nn.Module):
    """One expert, given the tokens that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 3)


class Block(nn.Module):
    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts
        self.gate, self.shared_experts = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 3))


def test_experts_are_told_by_the_name_of_their_class_or_of_their_list() -> None:
    lists = Block(nn.ModuleList([nn.Sequential(nn.Linear(3, 3)) for _ in range(2)]))
    own = Block(nn.ModuleDict({"expert_0": ToyExpertMLP()}))
    packed = Block(ToyExperts())
    model = nn.ModuleDict({"lists": lists, "own": own, "packed": packed})
    found = {path for path, _ in model.named_modules() if path and is_unordered(model, path)}
    assert found == {
        "lists.experts",
        *(f"lists.experts.{number}{inside}" for number in range(2) for inside in ("", ".0")),
        "own.experts",
        "own.experts.expert_0",
        "own.experts.expert_0.up",
    }
