"""A transformers model whose modules are gated in place, from a folder's bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from submerge.algebra import Bank, LowRank
from submerge.errors import Problem, RequestError, few
from submerge.gating import (
    Gate,
    GatedDense,
    GatedFactors,
    GatedModel,
    GatedTable,
    GatedUpdate,
    is_transposed,
    parameter_of,
    parameter_places,
)
from submerge.methods.mass import routes_on_base
from submerge.names import layer_of
from submerge.serving._folder import Folder
from submerge.serving._heads import attach_heads

__all__ = ["attach", "check_names"]

Updates = dict[str, dict[str, GatedUpdate]]
"""The updates of each module's own parameters, by its path."""


def attach(
    model: Any, folder: Folder, gate: Gate, names: Mapping[str, str], *, heads: bool, partial: bool
) -> GatedModel:
    """Gate the model's modules, and return them.

    `names` are the model's names of the folder's tensors. With `partial` the model is only a part of the
    checkpoint, and tensors outside of its layers may be missing.
    """
    check_names(model, folder, names, partial=partial)
    gated = GatedModel(gate)
    updates = _updates(model, folder, gate, names)
    if routes_on_base(folder.settings) or folder.settings["fixed"] == "base":
        _make_base_resident(model, updates)
    gated.sequential = any(_is_looked_up_by_distance(model, path) for path in updates)
    gated.add(model, updates)
    if heads:
        gated.heads = attach_heads(model, folder, gate, names)
    return gated


def check_names(model: Any, folder: Folder, names: Mapping[str, str], *, partial: bool) -> None:
    """Raise `RequestError` where the model lacks a parameter for an update in the bank."""
    missing = [n for n in folder.updated if n not in names]
    lost = [n for n in missing if not partial or layer_of(n) is not None]
    if lost:
        what = f"{type(model).__name__} has no parameters for updates in the bank: {few(lost)}"
        hint = "transformers keeps them in another form than the files, or the folder is of another model"
        raise RequestError(Problem(what, str(folder.path), hint))


def _updates(model: nn.Module, folder: Folder, gate: Gate, names: Mapping[str, str]) -> Updates:
    """Return the updates of all parameters, at every place where a parameter stands.

    A parameter under two names (a head that is tied to the embeddings) is updated once, by the first.
    """
    places = parameter_places(model)
    updates: Updates = {}
    updated: set[int] = set()
    for name in (n for n in folder.updated if n in names):
        parameter = parameter_of(model, names[name])
        if id(parameter) in updated:
            continue
        updated.add(id(parameter))
        base = _base_values(folder, name, parameter)
        for path, local in places[id(parameter)]:
            update = _update(folder, gate, name, model.get_submodule(path), path)
            update.base = base
            updates.setdefault(path, {})[local] = update
    return updates


def _is_looked_up_by_distance(model: nn.Module, path: str) -> bool:
    """Return whether a module is a table of relative positions: what it gives is for all samples at once."""
    return isinstance(model.get_submodule(path), nn.Embedding) and "relative_attention_bias" in path


def _update(folder: Folder, gate: Gate, name: str, module: nn.Module, path: str) -> GatedUpdate:
    if name in folder.dense:
        return GatedDense(gate, name, folder.dense[name])
    settings: dict[str, Any] = {
        "rule": folder.settings["aggregate"],
        "scale": folder.settings["scale"],
        "transposed": is_transposed(module),
        "table": isinstance(module, nn.Embedding),
    }
    key, parts = f"{path}:{name}", folder.factors[name]
    if name in folder.tables:
        return GatedTable(gate, key, parts, count=len(folder.tasks), **settings)
    return GatedFactors(gate, key, parts, **settings)


def _base_values(folder: Folder, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
    """Return the base's values, θ_MT less what the merge added; None where the checkpoint is the base."""
    if folder.settings["fixed"] == "base":
        return None
    merged = parameter.detach().to(torch.float32)
    if name in folder.dense:
        total = sum(d.float() for d in folder.dense[name].values())
        return (merged - total / len(folder.tasks)).to(parameter.dtype)
    if name in folder.merged:
        return (merged - folder.merged[name].float()).to(parameter.dtype)
    parts = folder.factors[name]
    bank = Bank((merged.shape[0], merged.shape[1]), parts)
    tasks = folder.fixed.get(name, tuple(parts))
    update = bank.merged(tasks, folder.settings["fixed"], folder.settings["scale"])
    return (merged - update.dense() if isinstance(update, LowRank) else merged).to(parameter.dtype)


def _make_base_resident(model: nn.Module, updates: Updates) -> None:
    """Put the base's values into the parameters themselves: nothing needs those of the merge.

    So there is one copy of the weights, which the first pass, every group of samples, and all modules that
    share a parameter use.
    """
    for path, own in updates.items():
        for local, update in own.items():
            if update.base is not None:
                getattr(model.get_submodule(path), local).data = update.base
                update.base = None
