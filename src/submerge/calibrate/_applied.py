"""An adapter in the weights of a model in memory, which has no scale any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from submerge.algebra import lengths
from submerge.calibrate._attached import attached, fitted_to
from submerge.calibrate._scaled_parts import unscaled_parameters
from submerge.gating import parameter_of
from submerge.store import Adapter, FileTable, LowRankPart, Replace, Rows, Transformed

__all__ = ["apply_adapter", "is_scaled", "with_adapter"]


@contextmanager
def with_adapter(model: nn.Module, adapter: Adapter | None) -> Iterator[None]:
    """Let a model run with an adapter as it was trained: attached to it, or applied to its weights for good.

    Raises `RequestError` where the adapter does not fit the model.
    """
    if adapter is None or not is_scaled(model, adapter):
        if adapter is not None:
            apply_adapter(model, adapter)
        yield
        return
    with attached(model, {"task": adapter}) as at, at.over(torch.ones(1)):
        yield


def is_scaled(model: nn.Module, adapter: Adapter) -> bool:
    """Return whether scales act on all that an adapter changes, so that it can be attached to the model."""
    return not any(unscaled_parameters(model, fitted_to(model, adapter)[0]))


@torch.no_grad()
def apply_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Change the weights of a model as an adapter does, in place: any adapter, of DoRA and OFT among them.

    Raises `RequestError` where the adapter does not fit the model.
    """
    fitted, _ = fitted_to(model, adapter)
    with FileTable() as table:
        for name in fitted.parts:
            parameter = parameter_of(model, name)
            if parameter.is_floating_point():
                parameter.copy_(_applied(fitted, name, parameter, table))


def _applied(adapter: Adapter, name: str, parameter: torch.Tensor, table: FileTable) -> torch.Tensor:
    """Return a parameter's new values, in float32 or wider."""
    part = adapter.parts[name]
    values = parameter.to(torch.promote_types(torch.float32, parameter.dtype), copy=True)
    double = values.dtype == torch.float64
    if isinstance(part, LowRankPart):
        left, right = (factor.to(values) for factor in adapter.factors(name, table, double=double))
        values += (left @ right).view_as(values)
        magnitude = adapter.magnitude(name, table)
        return values if magnitude is None else _rescaled(values, magnitude.to(values), part.scales_columns)
    if isinstance(part, Transformed):
        rows = values.reshape(len(values), -1)
        return adapter.row_map(name, table)(rows, 0, lambda first, last: rows[first:last]).view_as(values)
    new = adapter.tensor(name, table, double=double).to(values)
    if isinstance(part, Rows):
        values[list(part.indices)] = new
        return values
    return new if isinstance(part, Replace) else values + new.view_as(values)


def _rescaled(values: torch.Tensor, magnitude: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Return m ∘ W / ‖W‖, with norms over the inputs of each output (DoRA, arXiv 2402.09353)."""
    outputs = 1 if transposed else 0
    inputs = [axis for axis in range(values.ndim) if axis != outputs]
    norms = lengths(values, inputs, keepdim=True)
    return values * magnitude.view_as(norms) / norms
