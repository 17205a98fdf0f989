"""Parameters that a module around their own reads: a gate of their own module would not be asked.

They are replaced by their values for a group while a pass runs, wherever they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from submerge.gating._assignment import Assignment
from submerge.gating._gated_update import GatedUpdate

__all__ = ["ReplacedParameter", "replace_parameters", "restore_parameters"]


class ReplacedParameter:
    """A parameter of the module at `path`, and what a gate's members add to it."""

    def __init__(self, module: nn.Module, path: str, name: str, update: GatedUpdate) -> None:
        self.module, self.path, self.name, self.update = module, path, name, update
        self._own: torch.Tensor | None = None

    @contextmanager
    def over(self, assignment: Assignment) -> Iterator[None]:
        """Let the module have the values that an assignment of one group gives, where it acts on the module.

        Inside of another one the values count from the module's own, too, and not from those of the other.
        """
        if not assignment.acts_on(self.path):
            yield
            return
        ((group, _, _),) = assignment.split(self.path, ())
        tensors: dict[str, Any] = (
            self.module._parameters if self.name in self.module._parameters else self.module._buffers
        )
        before, outermost = tensors[self.name], self._own is None
        if self._own is None:
            self._own = before
        tensors[self.name] = self.update.dense(self._own, group)
        try:
            yield
        finally:
            tensors[self.name] = before
            if outermost:
                self._own = None


def replace_parameters(
    module: nn.Module, path: str, updates: Mapping[str, GatedUpdate]
) -> list[ReplacedParameter]:
    """Return parameters of a module, by their names in it, that are to be replaced while passes run."""
    module.add_module("submerge_replaced", nn.ModuleDict(dict(updates)))  # so that they move with the model
    return [ReplacedParameter(module, path, name, update) for name, update in updates.items()]


def restore_parameters(module: nn.Module) -> None:
    """Undo `replace_parameters`, in place."""
    del module.submerge_replaced
