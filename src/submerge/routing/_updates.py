"""What a router must know of the model that it looks at, whoever runs the tasks' updates in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from submerge.routing._replay import Replay

__all__ = ["InputFactors", "TaskUpdates"]


class InputFactors(Protocol):
    """The factors of the tasks' updates of a linear map on the side of its inputs.

    `down` [R, n] are the right factors V_t one below the other, `values` [R] the singular values, and
    `places` says by the task's number where its own are.
    """

    @property
    def down(self) -> torch.Tensor: ...

    @property
    def values(self) -> torch.Tensor: ...

    @property
    def places(self) -> Mapping[int, slice]: ...


class TaskUpdates(ABC):
    """The updates of several tasks in a model, as its router sees them."""

    @property
    @abstractmethod
    def factors(self) -> Mapping[str, InputFactors]:
        """Those of linear maps by the module's name in the model, where rows are the inputs' own."""

    @property
    @abstractmethod
    def head_widths(self) -> Sequence[int] | None:
        """How many outputs the head of each task has; None where the heads are no evidence of the task."""

    @abstractmethod
    def left_out(self, *, every_head: bool = False) -> AbstractContextManager[None]:
        """Return a context in which the model runs without updates.

        With `every_head` its logits are those of all tasks' heads side by side, −inf where one has none.
        """

    def replay(self, blocks: Sequence[nn.Module]) -> Replay | None:
        """Return what shares the first blocks with the second pass; None where it runs them again."""
        return None
