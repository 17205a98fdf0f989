"""A parameter that is put together from several tensors of the files, of which members have updates."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import nn

from submerge.gating._gate import Gate
from submerge.gating._gated_update import GatedUpdate
from submerge.gating._layout import Group
from submerge.names import Shape, View

__all__ = ["GatedAssembly", "place_blocks"]


class GatedAssembly(GatedUpdate):
    """A parameter such as packed experts [E, 2n, m], of whose tensors in the files members have updates.

    The update of a group is that of each tensor, at the places of the parameter that are made of it. It is
    dense: there is one product of factors for each tensor, and one parameter for each group.

    Args:
        gate: what all gated modules of the model share.
        name: of the parameter.
        view: how the parameter is made of tensors.
        shapes: of the tensors that have updates, by name.
        parts: their updates, by the same names; what `view` has besides stays the base's.

    Examples:
        >>> import torch
        >>> from submerge.gating import Gate, GatedAssembly, GatedDense, Group, Recent
        >>> from submerge.names import View
        >>> gate = Gate(Recent(0))
        >>> view = View.joined([View.of("w1", (1, 2)), View.of("w3", (1, 2))], 0)
        >>> own = {"w3": GatedDense(gate, "w3", {0: torch.tensor([[2.0, 3.0]])})}
        >>> packed = GatedAssembly(gate, "w1_w3", view, {"w3": (1, 2)}, own)
        >>> packed.dense(torch.ones(2, 2), Group((0,), 0, 5)).tolist()
        [[1.0, 1.0], [3.0, 4.0]]
    """

    def __init__(
        self, gate: Gate, name: str, view: View, shapes: Mapping[str, Shape], parts: Mapping[str, GatedUpdate]
    ) -> None:
        super().__init__(gate, name)
        self.view, self.shapes = view, dict(shapes)
        self.tensors = list(parts)
        self.parts = nn.ModuleList(parts[tensor] for tensor in self.tensors)
        self.places = {member: None for part in parts.values() for member in part.places}

    def dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        if not group.among(self.places).members:
            return self.resident(parameter)
        if group.weights is not None:
            return self._dense(parameter, group)
        key: Hashable = (self.name, "assembled", group.members, parameter.dtype, parameter.device)
        return self.gate.cache.found_or(key, lambda: self._dense(parameter, group))

    def _dense(self, parameter: torch.Tensor, group: Group) -> torch.Tensor:
        base = self.resident(parameter)
        values = base.to(torch.promote_types(base.dtype, torch.float32))
        updates = {}
        for tensor, part in zip(self.tensors, self.parts, strict=True):
            assert isinstance(part, GatedUpdate)
            if group.among(part.places).members:
                none = values.new_zeros(()).expand(self.shapes[tensor])
                updates[tensor] = part.dense(none, group)
        return place_blocks(values, self.view, updates).to(parameter.dtype)


def place_blocks(values: torch.Tensor, view: View, changes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a parameter plus changes of the tensors that it is made of, at their places; a new tensor.

    Examples:
        >>> import torch
        >>> from submerge.gating import place_blocks
        >>> from submerge.names import View
        >>> view = View.joined([View.of("w1", (1, 2)), View.of("w3", (1, 2))], 0)
        >>> place_blocks(torch.zeros(2, 2), view, {"w3": torch.ones(1, 2)}).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    result = values.clone()
    for block in view.blocks:
        if (change := changes.get(block.source)) is not None:
            part = change.contiguous().as_strided(block.shape, block.strides, block.offset)
            box = tuple(slice(at, at + size) for at, size in zip(block.start, block.shape, strict=True))
            result[box] += part.to(result)
    return result
