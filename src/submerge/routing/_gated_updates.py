"""The updates of a gated model, as its router sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from torch import nn

from submerge.gating import GatedFactors, GatedLinear, GatedModel, ResidentAssignment
from submerge.routing._replay import Replay
from submerge.routing._updates import TaskUpdates

__all__ = ["GatedUpdates"]


class GatedUpdates(TaskUpdates):
    """The updates that a gate holds back while no assignment gives them to a row."""

    def __init__(self, gated: GatedModel) -> None:
        self.gated = gated

    @property
    def factors(self) -> Mapping[str, GatedFactors]:
        """Those of linear maps whose rows are the inputs' own, by the module's name."""
        return {
            name: module.factors
            for name, module in self.gated.modules.items()
            if isinstance(module, GatedLinear) and name not in self.gated.unordered
        }

    @property
    def head_widths(self) -> Sequence[int] | None:
        """The widths of heads that stand on an encoder's output; None of others."""
        heads = self.gated.heads
        return None if heads is None or not heads.alone else heads.widths

    def left_out(self, *, every_head: bool = False) -> AbstractContextManager[None]:
        """Return a context in which no updates act."""
        return self.gated.gate.over(ResidentAssignment(every_branch=every_head))

    def replay(self, blocks: Sequence[nn.Module]) -> Replay:
        """Return what records the first blocks, and plays them in the second pass."""
        return Replay(self.gated.gate, blocks, frozenset(self.gated.modules))
