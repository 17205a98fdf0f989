"""Gated modules: y = W x + U_S M_S V_S x, where the set S of updates differs from row to row.

A gated module is the module itself, with its forward replaced by that of its `GatedModule`, of which there is
one class a kind. Each takes the input apart into rows, sorts them into groups that get the same updates, runs
each group in the cheapest exact form, and puts the rows back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from submerge.gating._assignment import Assignment
from submerge.gating._batch import joined
from submerge.gating._gate import Gate
from submerge.gating._layout import Group
from submerge.gating._updates import GatedFactors, GatedUpdate

__all__ = [
    "GatedEmbedding",
    "GatedForward",
    "GatedLayerNorm",
    "GatedLinear",
    "GatedModule",
    "GatedOther",
    "gate_module",
    "is_transposed",
    "ungate_module",
]


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

    @abstractmethod
    def run(self, module: nn.Module, assignment: Assignment, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output under an assignment whose updates act in it."""

    def value(self, module: nn.Module, name: str, group: Group) -> torch.Tensor:
        """Return one of the module's parameters, with the update of a group where it is gated."""
        parameter: torch.Tensor = getattr(module, name)
        return self.update(name).dense(parameter, group) if name in self.updates else parameter

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


class GatedLinear(GatedModule):
    """A linear map: `nn.Linear`, or transformers' `Conv1D`, which stores its weight transposed."""

    def run(self, module: nn.Module, assignment: Assignment, x: torch.Tensor) -> torch.Tensor:
        """Return y = (W + Δ_S) x + b_S for x [B, …, n]; what stays in factors shares one product with W."""
        x, update = assignment.spread(x), self.factors
        layout = assignment.layout(self.name, x.shape[:-1])
        rows = layout.arrange(x.reshape(-1, x.shape[-1]))  # [N, n], group by group
        y, beta = self._biases(module, rows, layout.groups)  # [N, m]: b_S of each row, if any
        base = update.resident(module.weight)  # type: ignore[arg-type]
        dense = list(takewhile(update.is_cheaper_dense, layout.groups))  # the largest groups come first
        first = dense[-1].stop if dense else 0
        for group in dense:  # + (W + Δ_S) x
            weight = update.inputs_first(update.dense(base, group))
            group.of(y).addmm_(group.of(rows), weight, beta=beta)
        if len(dense) < len(layout.groups):  # + W x, once for all other groups
            others = Group((), first, len(rows))
            others.of(y).addmm_(others.of(rows), update.inputs_first(base), beta=beta)
        for group in layout.groups[len(dense) :]:  # + U (M (V x))
            update.add_(group.of(y), group.of(rows), group)
        return layout.restore(y).view(*x.shape[:-1], y.shape[-1])  # [B, …, m]

    def _biases(
        self, module: nn.Module, rows: torch.Tensor, groups: Sequence[Group]
    ) -> tuple[torch.Tensor, int]:
        """Return an output [N, m] and the factor on what it holds: 1 on biases, 0 on values of no meaning."""
        y = rows.new_empty(len(rows), self.factors.up.shape[1])
        if getattr(module, "bias", None) is None:
            return y, 0
        for group in groups:
            group.of(y).copy_(self.value(module, "bias", group))
        return y, 1


class GatedEmbedding(GatedModule):
    """An embedding: the rows of a table, each with the row of its group's update."""

    def run(self, module: nn.Module, assignment: Assignment, ids: torch.Tensor) -> torch.Tensor:
        """Return E[i] + U_S[i] M_S V_S for ids i [B, …]."""
        ids = assignment.spread(ids)
        layout = assignment.layout(self.name, ids.shape)
        rows = layout.arrange(ids.reshape(-1))  # [N], group by group
        base = self.factors.resident(module.weight)  # type: ignore[arg-type]
        y = F.embedding(rows, base)  # [N, d]
        for group in layout.groups:
            self._add_(group.of(y), group.of(rows), base, group.among(self.factors.places))
        return layout.restore(y).view(*ids.shape, -1)

    def _add_(self, y: torch.Tensor, ids: torch.Tensor, base: torch.Tensor, group: Group) -> None:
        """Add the rows of a group's update that ids [N] name to y [N, d]."""
        update, members = self.factors, group.members
        if not members:
            return
        if update.is_ill_conditioned(group, y):
            y.copy_(F.embedding(ids, update.dense(base, group)))
            return
        left = [F.embedding(ids, update.up.T[:, update.places[k]]) for k in members]  # [N, r_k] each
        core = update.core(group, y)
        low = torch.cat(left, dim=-1).to(y.dtype)  # [N, R]
        low = low * core if core.ndim == 1 else low @ core.T
        y.addmm_(low, update.rows_of(update.down, members).to(y.dtype))


class GatedLayerNorm(GatedModule):
    """A layer norm, which scales and shifts each row by the parameters of its group."""

    def run(self, module: nn.Module, assignment: Assignment, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised x [B, …, n] times w_S plus b_S."""
        assert isinstance(module, nn.LayerNorm)
        x = assignment.spread(x)
        layout = assignment.layout(self.name, x.shape[: x.ndim - len(module.normalized_shape)])
        rows = layout.arrange(x.reshape(-1, *module.normalized_shape))  # [N, n], group by group
        y = torch.empty_like(rows)
        for group in layout.groups:
            weight, bias = (self.value(module, name, group) for name in ("weight", "bias"))
            normalised = F.layer_norm(group.of(rows), module.normalized_shape, weight, bias, module.eps)
            group.of(y).copy_(normalised)
        return layout.restore(y).view(x.shape)


class GatedOther(GatedModule):
    """A module of any kind, which runs group by group, with the parameters of each."""

    def run(self, module: nn.Module, assignment: Assignment, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of all groups, joined as the samples lie."""
        results = []
        self._entered = True  # the module's own forward comes back here
        try:
            for group, inputs, within in assignment.split(self.name, (args, kwargs)):
                values = {name: self.value(module, name, group) for name in self.updates}
                with self.gate.over(within):  # modules inside see the samples of this group alone
                    results.append(functional_call(module, values, *inputs))
        finally:
            self._entered = False
        return joined(results)


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module is a linear map that stores its weight as [n, m]."""
    return type(module).__name__ == "Conv1D"


def _kind(module: nn.Module, updates: Mapping[str, GatedUpdate]) -> type[GatedModule]:
    """Return the class for a module: one that is made for its kind of forward, or the one for any."""
    plain = type(module).forward
    if isinstance(updates.get("weight"), GatedFactors) and updates.keys() <= {"weight", "bias"}:
        if plain is nn.Linear.forward or is_transposed(module):
            return GatedLinear
        if plain is nn.Embedding.forward and module.max_norm is None:
            return GatedEmbedding
    return GatedLayerNorm if plain is nn.LayerNorm.forward else GatedOther


def gate_module(gate: Gate, module: nn.Module, updates: Mapping[str, GatedUpdate], name: str) -> GatedModule:
    """Gate a module in place, and return its gate; its class, parameters and state dict stay as they are.

    Args:
        gate: what all gated modules of the model share.
        module: any module; its forward is replaced.
        updates: by the names of the module's own parameters.
        name: of the module, as assignments name it.
    """
    gated = _kind(module, updates)(gate, updates, name)
    module.add_module("submerge", gated)  # so that it moves with the model
    module.forward = GatedForward(module, gated)
    return gated


def ungate_module(module: nn.Module) -> None:
    """Undo `gate_module`, in place: the module runs as its class does, and has no updates."""
    del module.submerge
    del module.forward


class GatedForward:
    """The forward of a gated module, which `layer` runs with the module itself.

    It is an object, and no closure or bound method, for copies: `copy.deepcopy` copies what it refers to with
    the model, where a function would go on to run the module it was made for. And it refers to the module,
    because `layer` must not: a module that is a child of its own child has no end of submodules.
    """

    def __init__(self, module: nn.Module, layer: nn.Module) -> None:
        self.module, self.layer = module, layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.forward(self.module, *args, **kwargs)
