"""K parameter sets of one module, such as the members' heads or projectors.

Rows run with the set that was chosen for them (`select`), or all sets run and their outputs, never their
weights, are mixed (`mix`):

    select   y_b = f(x_b; θ_{k(b)})           heads: a sample gets that of its first member
    mix      y_b = Σ_k w_bk f(x_b; θ_k)       projectors, which are not linear in their parameters

Whose weights follow from the module's own input: see `PrototypeBranches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from submerge.gating._batch import cut, joined, mapped
from submerge.gating._gate import Gate
from submerge.gating._layout import Span, UnsplitError
from submerge.gating._modules import GatedForward

__all__ = ["Branches", "MixedBranches", "SelectedBranches", "branch_module"]


class Branches(nn.Module):
    """K parameter sets of one module, of which `sets` gives each by the names of the module's parameters."""

    def __init__(self, gate: Gate, sets: Sequence[Mapping[str, torch.Tensor]]) -> None:
        super().__init__()
        self.gate = gate
        self._entered = False
        self._names: list[dict[str, str]] = []
        for number, parameters in enumerate(sets):
            names = {}
            for place, (name, tensor) in enumerate(sorted(parameters.items())):
                self.register_buffer(f"set{number}_{place}", tensor, persistent=False)
                names[name] = f"set{number}_{place}"
            self._names.append(names)

    @property
    def count(self) -> int:
        """The number K of parameter sets."""
        return len(self._names)

    def parameters_of(self, branch: int) -> dict[str, torch.Tensor]:
        """Return one of the parameter sets, by name."""
        return {name: getattr(self, buffer) for name, buffer in self._names[branch].items()}

    def run(self, module: nn.Module, branch: int, args: Any, kwargs: Any) -> Any:
        """Return what the module makes of inputs with one of the parameter sets."""
        self._entered = True  # the module's own forward comes back here
        try:
            return functional_call(module, self.parameters_of(branch), args, kwargs)
        finally:
            self._entered = False

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return what the module makes of its inputs with its resident parameters."""
        return type(module).forward(module, *args, **kwargs)

    def select(self, module: nn.Module, groups: Sequence[Span], args: Any, kwargs: Any) -> Any:
        """Return the outputs of all samples, each by the first member of its group, joined as they lie."""
        inputs = (args, kwargs)
        rows = _rows(inputs, groups[-1].stop)
        each = rows // groups[-1].stop
        parts = [
            (group.members[0], cut(inputs, slice(group.start * each, group.stop * each), rows))
            for group in groups
        ]
        return joined([self.run(module, branch, *part) for branch, part in parts])

    def mix(self, module: nn.Module, weights: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        """Return Σ_k w_bk f(x_b; θ_k) for weights [B, K] and inputs with one or several rows a sample.

        A parameter set runs on the rows whose weight for it is not 0, and not at all where there are none.
        """
        inputs = (args, kwargs)
        rows = _rows(inputs, len(weights))
        weights = weights.repeat_interleave(rows // len(weights), dim=0)  # [rows, K]
        mixed: torch.Tensor | None = None
        for branch in range(self.count):
            used = weights[:, branch].nonzero().flatten()
            if not len(used):
                continue
            own = inputs if len(used) == rows else mapped(inputs, _picker(used), rows)
            y = self.run(module, branch, *own)
            if len(y) != len(used):
                raise UnsplitError
            term = y * weights[used, branch].to(y.device, _wide(y)).view(-1, *[1] * (y.ndim - 1))
            mixed = term.new_zeros(rows, *y.shape[1:]) if mixed is None else mixed
            mixed.index_add_(0, used.to(y.device), term)
        if mixed is None:
            raise ValueError("all weights are 0")
        return mixed.to(y.dtype)

    def blend(self, module: nn.Module, weights: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        """Return Σ_k w_k f(x; θ_k) for weights [K] and the inputs of one sample, of any number of rows.

        Outputs may have other rows than inputs: nothing is told of them but their sum.
        """
        blended: torch.Tensor | None = None
        for branch, weight in enumerate(weights.tolist()):
            if weight:
                y = self.run(module, branch, args, kwargs)
                term = y.to(_wide(y)) * weight
                blended = term if blended is None else blended + term
        if blended is None:
            raise ValueError("all weights are 0")
        return blended.to(y.dtype)


def _wide(y: torch.Tensor) -> torch.dtype:
    """Return the type to sum in: weights that are rounded to 16 bits do not sum to 1."""
    return torch.promote_types(y.dtype, torch.float32)


def _picker(rows: torch.Tensor) -> Any:
    return lambda x: x[rows.to(x.device)]


def _rows(inputs: Any, size: int) -> int:
    """Return the rows of the first input, which must be one or several for each sample."""
    args, kwargs = inputs
    rows: int = (args[0] if args else next(iter(kwargs.values()))).shape[0]
    if rows % size:
        raise UnsplitError
    return rows


class SelectedBranches(Branches):
    """Parameter sets of which each sample gets that of its first member."""

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        assignment = self.gate.assignment
        if self._entered or assignment is None or not assignment.leads:
            return super().forward(module, *args, **kwargs)
        return self.select(module, assignment.leads, args, kwargs)


class MixedBranches(Branches):
    """Parameter sets whose outputs are mixed by the weights of each sample."""

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        assignment = self.gate.assignment
        if self._entered or assignment is None or assignment.mixture is None:
            return super().forward(module, *args, **kwargs)
        return self.mix(module, assignment.mixture, args, kwargs)


def branch_module(module: nn.Module, branches: Branches) -> None:
    """Let a module run with its branches, in place; its class, parameters and state dict stay as they are."""
    module.add_module("submerge", branches)
    module.forward = GatedForward(module, branches)
