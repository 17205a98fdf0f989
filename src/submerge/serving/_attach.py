"""A transformers model whose modules are gated in place, from a folder's bank."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from submerge.algebra import Bank, LowRank
from submerge.errors import Problem, RequestError, few
from submerge.gating import (
    Gate,
    GatedAssembly,
    GatedDense,
    GatedFactors,
    GatedModel,
    GatedTable,
    GatedUpdate,
    is_transposed,
    parameter_of,
    parameter_places,
    place_blocks,
)
from submerge.names import Shape, View, empty_model, layer_of, loading
from submerge.serving._folder import Folder
from submerge.serving._heads import attach_heads
from submerge.store import open_checkpoint

__all__ = ["attach_bank", "check_names", "is_unordered"]

Updates = dict[str, dict[str, GatedUpdate]]
"""The updates of each module's own parameters, by its path."""


def attach_bank(
    model: Any,
    folder: Folder,
    gate: Gate,
    names: Mapping[str, str],
    *,
    heads: bool,
    partial: bool,
    base_resident: bool = False,
) -> GatedModel:
    """Gate a model's modules by what a folder's bank holds, and return them.

    Every parameter is gated where it stands: tied ones at each place, those that are stored transposed or
    packed from several tensors, too. The gate's settings say how updates act: `fixed` what the checkpoint is
    (`base`, or the rule by which it merges the bank), `aggregate` how a set of members without weights is
    merged (by default `sum`), `scale` a factor on what factors add (1), and `heads` whose head answers
    (`router`: that of the assignment's leads).

    Args:
        model: of transformers, from the folder's checkpoint.
        folder: whose bank is read.
        gate: what all gated modules of the model share.
        names: the model's names of the folder's tensors.
        heads: whether the tasks' own modules are given to each.
        partial: whether the model is only a part of the checkpoint: tensors outside of its layers may be
            missing.
        base_resident: whether the model without updates is the base, though the checkpoint is a merge.

    Raises:
        RequestError: the model has no place for an update, or the settings do not say what is `fixed`.

    Examples:
        >>> import submerge
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> from pathlib import Path
        >>> from transformers import AutoModelForCausalLM
        >>> from submerge.gating import Gate, Recent
        >>> from submerge.serving import attach_bank, open_folder
        >>> folder, model = open_folder(Path("served")), AutoModelForCausalLM.from_pretrained("served")
        >>> names = {name: name for name in folder.updated}
        >>> gated = attach_bank(model, folder, Gate(Recent(0)), names, heads=False, partial=False)
        >>> len(gated.modules)
        39
    """
    if "fixed" not in folder.settings:
        what = f"the settings of the gate of {folder.method} lack 'fixed': what the checkpoint is"
        hint = "let the method's GateSpec.settings return it: 'base' where the checkpoint is the base"
        raise RequestError(Problem(what, str(folder.path), hint))
    places = _places(model, folder, names, partial=partial)
    check_names(model, folder, places.found, partial=partial)
    gated = GatedModel(gate)
    updates = _updates(model, folder, gate, places)
    if (dtype := folder.loading.get("dtype")) is not None:  # after the base's values were taken from them
        for update in (update for own in updates.values() for update in own.values()):
            update.to(dtype)
    if base_resident or folder.settings["fixed"] == "base":
        _make_base_resident(model, updates)
    gated.add(model, updates)
    gated.unordered = frozenset(path for path in updates if is_unordered(model, path))
    gated.sequential |= bool(gated.unordered)
    if heads:
        gated.heads = attach_heads(model, folder, gate, names)
    return gated


@dataclass(frozen=True)
class _Places:
    """Where the tensors of a bank are in a model.

    `names` are the parameters that they become, and `packed` those that are made of several of them, or of a
    part of one, as experts are; `shapes` are the tensors' own. `ignored` are those that the model's class has
    no place for in any file.
    """

    names: Mapping[str, str]
    packed: Mapping[str, View]
    shapes: Mapping[str, Shape]
    ignored: frozenset[str]

    @property
    def found(self) -> set[str]:
        """The tensors that have a place, or need none."""
        inside = {source for view in self.packed.values() for source in view.sources}
        return {*self.names, *inside, *self.ignored}


def _places(model: Any, folder: Folder, names: Mapping[str, str], *, partial: bool) -> _Places:
    """Return where a folder's updates go, of which `names` become parameters as they are."""
    lost = {name for name in folder.updated if name not in names}
    if not lost:
        return _Places(names, {}, {}, frozenset())
    checkpoint = open_checkpoint(str(folder.path.resolve()))
    shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
    made = loading(model, shapes)
    packed = {name: view for name, view in made.views.items() if lost.intersection(view.sources)}
    ignored = made.ignored
    if partial:
        own = empty_model(checkpoint.config)
        ignored = frozenset() if own is None else loading(own, shapes).ignored
    return _Places(names, packed, shapes, ignored)


def check_names(model: Any, folder: Folder, names: Container[str], *, partial: bool) -> None:
    """Raise `RequestError` where the model lacks a parameter for an update in the bank."""
    missing = [n for n in folder.updated if n not in names]
    lost = [n for n in missing if not partial or layer_of(n) is not None]
    if lost:
        what = f"{type(model).__name__} has no parameters for updates in the bank: {few(lost)}"
        hint = "transformers keeps them in another form than the files, or the folder is of another model"
        raise RequestError(Problem(what, str(folder.path), hint))


def _updates(model: nn.Module, folder: Folder, gate: Gate, places: _Places) -> Updates:
    """Return the updates of all parameters, at every place where a parameter stands.

    A parameter under two names (a head that is tied to the embeddings) is updated once, by the first.
    """
    stands = parameter_places(model)
    updates: Updates = {}
    updated: set[int] = set()
    made: list[tuple[str, str | View]] = list(places.packed.items())
    for name, tensor in [(places.names[n], n) for n in folder.updated if n in places.names] + made:
        parameter = parameter_of(model, name)
        if id(parameter) in updated:
            continue
        updated.add(id(parameter))
        if isinstance(tensor, View):
            base = _packed_base_values(folder, tensor, places.shapes, parameter)
        else:
            base = _base_values(folder, tensor, parameter)
        for path, local in stands[id(parameter)]:
            if isinstance(tensor, View):
                update: GatedUpdate = _assembly(folder, gate, f"{path}:{local}", tensor, places.shapes)
            else:
                update = _update(folder, gate, tensor, model.get_submodule(path), path)
            update.base = base
            updates.setdefault(path, {})[local] = update
    return updates


def _assembly(folder: Folder, gate: Gate, key: str, view: View, shapes: Mapping[str, Shape]) -> GatedUpdate:
    """Return the update of a parameter that is made of several tensors, or of parts of some."""
    own = [name for name in view.sources if name in folder.factors or name in folder.dense]
    parts = {name: _update(folder, gate, name, nn.Identity(), key) for name in own}
    return GatedAssembly(gate, key, view, {name: shapes[name] for name in own}, parts)


def is_unordered(model: Any, path: str) -> bool:
    """Return whether the rows that a module is given, or gives, are not those of one sample after another.

    It is so of a table of relative positions, and of experts that are given the tokens that they take: those
    that are told which these are get all tokens as they lie.
    """
    module = model.get_submodule(path)
    if isinstance(module, nn.Embedding) and "relative_attention_bias" in path:
        return True
    names = path.split(".")
    if _is_of_experts(names[-1], module) and len(inspect.signature(type(module).forward).parameters) > 3:
        return False
    around = [(names[i - 1], model.get_submodule(".".join(names[:i]))) for i in range(1, len(names))]
    return any(_is_of_experts(name, inside) for name, inside in (*around, (names[-1], module)))


def _is_of_experts(name: str, module: nn.Module) -> bool:
    """Return whether a module that is called so is of experts, or a list of them: MLPs as any, for a block.

    No attribute of transformers' tells of all classes, nor do shapes. But all are named so, and lists are
    `experts`, as in the files; shared experts, which are given all tokens, are not.
    """
    is_list = name == "experts" and type(module) in (nn.ModuleList, nn.ModuleDict)
    return is_list or "Expert" in type(module).__name__


def _update(folder: Folder, gate: Gate, name: str, module: nn.Module, path: str) -> GatedUpdate:
    if name in folder.dense:
        return GatedDense(gate, name, folder.dense[name])
    settings: dict[str, Any] = {
        "rule": folder.settings.get("aggregate", "sum"),
        "scale": folder.settings.get("scale", 1.0),
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
    update = bank.merged(tasks, folder.settings["fixed"], folder.settings.get("scale", 1.0))
    return (merged - update.dense() if isinstance(update, LowRank) else merged).to(parameter.dtype)


def _packed_base_values(
    folder: Folder, view: View, shapes: Mapping[str, Shape], parameter: torch.Tensor
) -> torch.Tensor | None:
    """Return the base's values of a parameter made of several tensors; None as `_base_values` does."""
    less = {}
    for name in view.sources:
        if name in folder.factors or name in folder.dense:
            base = _base_values(folder, name, torch.zeros(shapes[name], device=parameter.device))
            if base is None:
                return None
            less[name] = base
    return place_blocks(parameter.detach().float(), view, less).to(parameter.dtype)


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
