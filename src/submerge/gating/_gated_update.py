"""What members add to one parameter, whatever form it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from submerge.gating._gate import Gate
from submerge.gating._layout import Group

__all__ = ["GatedUpdate", "SideFactors"]


class SideFactors(Protocol):
    """Factors that act on rows beside a matrix."""

    def add_(self, y: torch.Tensor, x: torch.Tensor, group: Group) -> None:
        """Add x Δᵀ, for the rows x [N, n] of a group, to its rows y [N, m]."""


class GatedUpdate(nn.Module, ABC):
    """One gated parameter: what the members add to it, and `base`, from which their updates count.

    `base` is None where the module's parameter itself has the base's values, which is what is resident then.
    """

    base: torch.Tensor | None
    places: Mapping[int, Any]
    """Where each member's own part lies; members that are not in it add nothing."""

    def __init__(self, gate: Gate, name: str) -> None:
        super().__init__()
        self.gate = gate
        self.name = name
        self.register_buffer("base", None, persistent=False)

    def resident(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return the base's values, of which there is one copy for all groups."""
        return parameter if self.base is None else self.base

    @abstractmethod
    def dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        """Return the base's values plus the update of a group, in the parameter's shape."""

    def apart(self, parameter: torch.Tensor, group: Group) -> tuple[torch.Tensor, SideFactors | None]:
        """Return a group's values, and the factors that act beside them: W and U, V of W x + U (M (V x))."""
        return self.dense(parameter, group), None
