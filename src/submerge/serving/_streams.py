"""The streams of a composed model's bank, as updates of the language model's modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from submerge.algebra import Triplets
from submerge.gating import (
    Gate,
    GatedFactors,
    GatedMap,
    GatedModel,
    GatedRows,
    GatedUpdate,
    GatedValues,
    is_transposed,
    parameter_of,
    parameter_places,
    token_modules,
)
from submerge.serving._modality_folder import ModalityFolder, Read, StreamParts

__all__ = ["stream_updates", "tell_heads"]


def stream_updates(
    model: nn.Module, folder: ModalityFolder, gate: Gate, names: Mapping[str, str], read: Read
) -> dict[str, dict[str, GatedUpdate]]:
    """Return the updates of each module's own parameters, by its path, in the dtype of the parameters.

    `names` are the model's names of the folder's tensors.
    """
    places = parameter_places(model)
    updates: dict[str, dict[str, GatedUpdate]] = {}
    for name, parts in folder.parameters.items():
        parameter = parameter_of(model, names[name])
        for path, local in places[id(parameter)]:
            module = model.get_submodule(path)
            reader = _StreamReader(gate, f"{path}:{local}", parameter, read)
            updates.setdefault(path, {})[local] = reader.update(parts, folder.owners, module)
    return updates


def tell_heads(model: Any, gated: GatedModel) -> None:
    """Tell gated norms which heads come before positions in their inputs, as in the attention of Gemma 3.

    The model's class is run once more, without values: shapes of a prompt may look like either.
    """
    norms = {
        path: module
        for path, module in gated.modules.items()
        if isinstance(module, GatedRows) and not isinstance(module, GatedMap)
    }
    if not norms:
        return
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"  # kernels of others may ask for a device
    try:
        with torch.device("meta"):
            twin = type(model)(config)
    except Exception:  # a class that needs more to be made: then shapes have to tell
        return
    for path in token_modules(twin, norms).heads_first:
        norms[path].heads_first = True


class _StreamReader:
    """Reads what the bank holds of one parameter."""

    def __init__(self, gate: Gate, key: str, parameter: torch.Tensor, read: Read) -> None:
        self.gate, self.key, self.parameter, self.read = gate, key, parameter, read

    def update(self, parts: StreamParts, owners: Sequence[int], module: nn.Module) -> GatedUpdate:
        """Return the update of a parameter for the streams of K specialists, which `owners` stand for.

        Members are the owners, and K for −ΔW, which a stream that counts from the base's values needs where
        the parameter is that of the merged language model, and the base's is not at hand.
        """
        values = {n: self._tensor(name) for n, name in parts.values.items()}
        triplets = {n: self._triplets(pair) for n, pair in parts.factors.items() if n not in values}
        counts_from_base = any(owner not in values for owner in owners)
        if parts.merged and not parts.base and counts_from_base:
            triplets[len(owners)] = self._triplets(parts.merged, sign=-1.0)
        factors = self._factors(triplets, module) if triplets else None
        update = GatedValues(self.gate, self.key, values, factors) if values or factors is None else factors
        if parts.base and counts_from_base:
            update.base = self._tensor(parts.base[0])
        return update

    def _factors(self, triplets: Mapping[int, Triplets], module: nn.Module) -> GatedFactors:
        transposed = is_transposed(module)
        return GatedFactors(self.gate, self.key, triplets, rule="sum", scale=1.0, transposed=transposed)

    def _triplets(self, pair: Mapping[str, str], sign: float = 1.0) -> Triplets:
        left, right = self._tensor(pair["left"]), self._tensor(pair["right"])
        return Triplets(left, left.new_full((left.shape[1],), sign), right)

    def _tensor(self, name: str) -> Any:
        return self.read(name).to(self.parameter.dtype)
