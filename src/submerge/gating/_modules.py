"""A module becomes a gated one, of the class that is made for its kind, and is let go again.

A gated module is the module itself, with its forward replaced by that of its `GatedModule`, of which there is
one class a kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from submerge.gating._gate import Gate
from submerge.gating._gated_dense import GatedDense
from submerge.gating._gated_embedding import GatedEmbedding
from submerge.gating._gated_factors import GatedFactors
from submerge.gating._gated_linear import GatedLinear, GatedMap, is_linear_map, is_transposed
from submerge.gating._gated_module import GatedModule, GatedOther
from submerge.gating._gated_rows import GatedLayerNorm, GatedRows, is_row_wise
from submerge.gating._gated_update import GatedUpdate

__all__ = ["GatedForward", "gate_module", "ungate_module"]


def _kind(module: nn.Module, updates: Mapping[str, GatedUpdate]) -> type[GatedModule]:
    """Return the class for a module: one that is made for its kind of forward, or the one for any."""
    plain = type(module).forward
    has_factors = isinstance(updates.get("weight"), GatedFactors) and updates.keys() <= {"weight", "bias"}
    if is_linear_map(module):
        return GatedLinear if has_factors else GatedMap
    if plain is nn.Embedding.forward and module.max_norm is None and has_factors:
        return GatedEmbedding
    if plain is nn.LayerNorm.forward:
        return GatedLayerNorm
    return GatedRows if is_row_wise(module) else GatedOther


def gate_module(gate: Gate, module: nn.Module, updates: Mapping[str, GatedUpdate], name: str) -> GatedModule:
    """Gate a module in place, and return its gate; its class, parameters and state dict stay as they are.

    Args:
        gate: what all gated modules of the model share.
        module: any module; its forward is replaced.
        updates: by the names of the module's own parameters.
        name: of the module, as assignments name it.

    Raises:
        ValueError: an update does not fit its parameter: it has another shape, or is of the transposed one.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from submerge.gating import ConstantAssignment, Gate, GatedDense, Recent, gate_module
        >>> gate, linear = Gate(Recent(0)), nn.Linear(2, 1)
        >>> own = {"bias": GatedDense(gate, "bias", {0: torch.tensor([2.0])})}
        >>> type(gate_module(gate, linear, own, "proj")).__name__
        'GatedMap'
        >>> x = torch.ones(1, 2)
        >>> plain = linear(x)
        >>> with gate.over(ConstantAssignment(torch.ones(1))):
        ...     round((linear(x) - plain).item(), 4)
        2.0
    """
    for local, update in updates.items():
        _check_fit(module, local, update, name)
    gated = _kind(module, updates)(gate, updates, name)
    module.add_module("submerge", gated)  # so that it moves with the model
    module.forward = GatedForward(module, gated)
    return gated


def _check_fit(module: nn.Module, local: str, update: GatedUpdate, name: str) -> None:
    """Raise `ValueError` where an update would be broadcast, or added to the transposed parameter."""
    shape: tuple[int, ...]
    if isinstance(update, GatedFactors):
        shape, transposed = update.shape, local == "weight" and is_transposed(module)
        if update.transposed != transposed:
            raise ValueError(
                f"{name}.{local}: its factors need transposed={transposed}, as is_transposed says"
            )
    elif isinstance(update, GatedDense):
        shape = tuple(update.updates.shape[1:])
    else:
        return
    if shape != (own := tuple(getattr(module, local).shape)):
        raise ValueError(f"{name}.{local} has the shape {list(own)}; its update has {list(shape)}")


def ungate_module(module: nn.Module) -> None:
    """Undo `gate_module`, in place: the module runs as its class does, and has no updates.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from submerge.gating import Gate, GatedDense, Recent, gate_module, ungate_module
        >>> gate, linear = Gate(Recent(0)), nn.Linear(2, 1)
        >>> layer = gate_module(gate, linear, {"bias": GatedDense(gate, "bias", {0: torch.ones(1)})}, "proj")
        >>> ungate_module(linear)
        >>> "forward" in vars(linear)
        False
    """
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
