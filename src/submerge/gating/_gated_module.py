"""The gate of one module of any kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from submerge.gating._assignment import Assignment
from submerge.gating._batch import joined
from submerge.gating._gate import Gate
from submerge.gating._gated_factors import GatedFactors
from submerge.gating._gated_update import GatedUpdate
from submerge.gating._layout import Group

__all__ = ["GatedModule", "GatedOther"]


class GatedModule(nn.Module, ABC):
    """The gate of one module: the updates of its own parameters, and how the module is run with them."""

    def __init__(self, gate: Gate, updates: Mapping[str, GatedUpdate], name: str) -> None:
        super().__init__()
        self.gate = gate
        self.name = name
        self.updates = nn.ModuleDict(updates)
        self._entered = False

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return what the module makes of its inputs, each row with its own updates."""
        assignment = self.gate.assignment
        if self._entered or assignment is None or not assignment.acts_on(self.name):
            return type(module).forward(module, *args, **kwargs)
        return self.run(module, assignment, *args, **kwargs)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the module run with the parameters that it has, inside."""
        before, self._entered = self._entered, True
        try:
            yield
        finally:
            self._entered = before

    @abstractmethod
    def run(self, module: nn.Module, assignment: Assignment, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output under an assignment whose updates act in it."""

    def value(self, module: nn.Module, name: str, group: Group) -> torch.Tensor:
        """Return one of the module's parameters, with the update of a group where it is gated."""
        parameter: torch.Tensor = getattr(module, name)
        if group.resident or name not in self.updates:
            return parameter
        return self.update(name).dense(parameter, group)

    def update(self, name: str) -> GatedUpdate:
        """Return the update of one of the module's parameters."""
        update = self.updates[name]
        assert isinstance(update, GatedUpdate)
        return update

    @property
    def factors(self) -> GatedFactors:
        """The update of the weight of a module whose weight has one in factors."""
        update = self.updates["weight"]
        assert isinstance(update, GatedFactors)
        return update


class GatedOther(GatedModule):
    """A module of any kind, which runs group by group, with the parameters of each."""

    def run(self, module: nn.Module, assignment: Assignment, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of all groups, joined as the samples lie."""
        results = []
        for group, inputs, within in assignment.split(self.name, (args, kwargs)):
            values = {name: self.value(module, name, group) for name in self.updates}
            with self.gate.over(within):  # modules inside see the samples of this group alone
                results.append(self.call(module, values, *inputs))
        return joined(results)

    def call(
        self, module: nn.Module, values: Mapping[str, torch.Tensor], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """Return what the module makes of inputs with other values of its parameters."""
        with self.aside():  # the module's own forward comes back here
            return functional_call(module, dict(values), args, dict(kwargs))
