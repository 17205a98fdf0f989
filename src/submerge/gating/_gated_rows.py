"""The gates of modules that map each row by itself, which streams of tokens may run with other parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from submerge.gating._assignment import Assignment
from submerge.gating._gated_module import GatedOther
from submerge.gating._layout import Layout, UnsplitError

__all__ = ["GatedLayerNorm", "GatedRows", "is_row_wise"]

_NOT_BY_ROW = (nn.GroupNorm, nn.modules.batchnorm._NormBase)
"""Norms over channels, whose parameters are as those of a norm of rows."""


class GatedRows(GatedOther):
    """A module that maps each row of its one input by itself, as the norms of transformers' models do.

    Streams of tokens are run one by one, y[rows of g] = f(x[rows of g]; θ_g). With `heads_first` inputs of
    several heads are [B, H, L, n], which shapes alone do not always tell from [B, L, H, n].
    """

    heads_first = False

    def run(self, module: nn.Module, assignment: Assignment, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs [B, L, …, n] of all groups, each with its own parameters."""
        inputs = (*args, *kwargs.values())
        if not assignment.picks_rows or len(inputs) != 1 or not self.has_rows(module, inputs[0]):
            return super().run(module, assignment, *args, **kwargs)
        swaps = self.heads_first and inputs[0].ndim == 4
        x = inputs[0].transpose(1, 2) if swaps else inputs[0]
        layout = assignment.layout(self.name, x.shape[:-1])
        if layout.is_resident:
            return type(module).forward(module, *args, **kwargs)
        y = self.by_token(module, layout, x)
        return y.transpose(1, 2) if swaps else y

    def has_rows(self, module: nn.Module, x: Any) -> bool:
        """Return whether an input has the rows that the module maps: [n] for parameters [n]."""
        shapes = {getattr(module, name).shape for name in self.updates}
        return isinstance(x, torch.Tensor) and shapes == {x.shape[-1:]}

    def by_token(self, module: nn.Module, layout: Layout, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs [B, L, …, n] of the rows of a layout."""
        values = [{name: self.value(module, name, group) for name in self.updates} for group in layout.groups]
        return self.map_rows(module, layout, values, x)

    def map_rows(
        self,
        module: nn.Module,
        layout: Layout,
        values: Sequence[Mapping[str, torch.Tensor]],
        x: torch.Tensor,
    ) -> torch.Tensor:
        """Return f(x; θ_g) for the rows of each group, of which `values` are the parameters.

        Where all have the module's own parameters, no row is copied.
        """
        if all(value is getattr(module, name) for own in values for name, value in own.items()):
            return type(module).forward(module, x)  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.shape[-1])  # [N, n]
        y: torch.Tensor | None = None
        for place, own in zip(layout.places_on(x.device), values, strict=True):
            part = self.map(module, own, rows[place])
            y = part.new_empty(len(rows), part.shape[-1]) if y is None else y
            y[place] = part
        assert y is not None
        return y.view(*x.shape[:-1], y.shape[-1])

    def map(self, module: nn.Module, values: Mapping[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Return f(x; θ) for rows [N, n]."""
        y = self.call(module, values, (rows,), {})
        if not isinstance(y, torch.Tensor) or y.shape != rows.shape:
            raise UnsplitError
        return y


class GatedLayerNorm(GatedRows):
    """A layer norm, which scales and shifts each row by the parameters of its group."""

    def run(self, module: nn.Module, assignment: Assignment, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the normalised x [B, …, n] times w_S plus b_S."""
        if assignment.picks_rows:
            return super().run(module, assignment, *args, **kwargs)  # type: ignore[no-any-return]
        return self._by_sample(module, assignment, *args, **kwargs)

    def _by_sample(self, module: nn.Module, assignment: Assignment, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, nn.LayerNorm)
        x = assignment.spread(x)
        layout = assignment.layout(self.name, x.shape[: x.ndim - len(module.normalized_shape)])
        rows = x.reshape(-1, *module.normalized_shape)  # [N, n]
        y = torch.empty_like(rows)
        for group in layout.groups:
            weight, bias = (self.value(module, name, group) for name in ("weight", "bias"))
            normalised = F.layer_norm(group.of(rows), module.normalized_shape, weight, bias, module.eps)
            group.of(y).copy_(normalised)
        return y.view(x.shape)


def is_row_wise(module: nn.Module) -> bool:
    """Return whether a module seems to map each row [n] by itself: all its parameters are vectors [n].

    So are those of an RMSNorm of any class. Modules with others inside, with buffers (running statistics),
    and norms over channels are none. That an input has rows [n], and the output its shape, is seen later.
    """
    if isinstance(module, _NOT_BY_ROW) or [*module.children(), *module.buffers()]:
        return False
    shapes = {parameter.shape for parameter in module.parameters()}
    return len(shapes) == 1 and len(shapes.pop()) == 1
