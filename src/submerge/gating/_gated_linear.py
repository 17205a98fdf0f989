"""The gates of linear maps: y = W x + U_S M_S V_S x, where the set S of updates differs from row to row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from submerge.gating._assignment import Assignment
from submerge.gating._gated_rows import GatedRows
from submerge.gating._gated_update import SideFactors
from submerge.gating._layout import Group, Layout

__all__ = ["GatedLinear", "GatedMap", "is_linear_map", "is_transposed"]


class GatedMap(GatedRows):
    """A linear map: `nn.Linear`, or transformers' `Conv1D`, which stores its weight transposed.

    Streams of tokens may have updates of any kind:

        y = W x + b               on all rows as they lie, where no group has a matrix or a bias of its own
        y = W_g x + b_g           else, on the rows of each group
        y += U_g (M_g (V_g x))    on the rows of groups with factors

    In the first no row of text is copied. In the second all are, which takes the time of 32 multiply-adds an
    element; the rows of streams would take m more each if their products with W were computed, too.
    """

    def has_rows(self, module: nn.Module, x: Any) -> bool:
        return True

    def by_token(self, module: nn.Module, layout: Layout, x: torch.Tensor) -> torch.Tensor:
        """Return y [B, L, …, m] for x [B, L, …, n]."""
        terms = [self._terms(module, group) for group in layout.groups]
        y = self.map_rows(module, layout, [values for values, _ in terms], x)
        rows, outputs = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        places = layout.places_on(x.device)
        for (_, factors), group, place in zip(terms, layout.groups, places, strict=True):
            if factors is not None:
                part = outputs[place]  # a view where the rows lie together
                factors.add_(part, rows[place].to(part.dtype), group)
                if not isinstance(place, slice):
                    outputs[place] = part
        return y

    def _terms(
        self, module: nn.Module, group: Group
    ) -> tuple[Mapping[str, torch.Tensor], SideFactors | None]:
        """Return a group's matrix and bias, and the factors that act besides."""
        names = [name for name in self.updates if name != "weight"]
        values = {name: self.value(module, name, group) for name in names}
        if group.resident or "weight" not in self.updates:
            return values, None
        weight, factors = self.update("weight").apart(module.weight, group)  # type: ignore[arg-type]
        return {**values, "weight": weight}, factors

    def map(self, module: nn.Module, values: Mapping[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        weight = values.get("weight", module.weight)
        bias = values.get("bias", getattr(module, "bias", None))
        return F.linear(rows, weight.T if is_transposed(module) else weight, bias)  # type: ignore[arg-type]


class GatedLinear(GatedMap):
    """A linear map whose updates are factors."""

    def run(self, module: nn.Module, assignment: Assignment, *args: Any, **kwargs: Any) -> torch.Tensor:
        if assignment.picks_rows:
            return super().run(module, assignment, *args, **kwargs)  # type: ignore[no-any-return]
        return self._by_group(module, assignment, *args, **kwargs)

    def _by_group(self, module: nn.Module, assignment: Assignment, x: torch.Tensor) -> torch.Tensor:
        """Return y = (W + Δ_S) x + b_S for x [B, …, n]; what stays in factors shares one product with W."""
        x, update = assignment.spread(x), self.factors
        layout = assignment.layout(self.name, x.shape[:-1])
        rows = x.reshape(-1, x.shape[-1])  # [N, n]
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
        return y.view(*x.shape[:-1], y.shape[-1])  # [B, …, m]

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


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module is a linear map that stores its weight as [n, m].

    Examples:
        >>> from torch import nn
        >>> from transformers.pytorch_utils import Conv1D
        >>> from submerge.gating import is_transposed
        >>> is_transposed(Conv1D(3, 2)), is_transposed(nn.Linear(2, 3))
        (True, False)
    """
    return type(module).__name__ == "Conv1D"


def is_linear_map(module: nn.Module) -> bool:
    """Return whether a module does nothing but map its input linearly, as `nn.Linear` and `Conv1D` do.

    Examples:
        >>> from torch import nn
        >>> from submerge.gating import is_linear_map
        >>> is_linear_map(nn.Linear(2, 3)), is_linear_map(nn.ReLU())
        (True, False)
    """
    return type(module).forward is nn.Linear.forward or is_transposed(module)
