"""A transformers model whose layers are gated in place, from a folder's bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from submerge.algebra import Bank, LowRank
from submerge.errors import Problem, RequestError, few
from submerge.gating._branches import Heads, Own, own_modules
from submerge.gating._gate import Gate
from submerge.gating._updates import Factors, Forward, GatedLayer, Kept, Table, Whole, gate_layer
from submerge.methods.mass import routes_on_base
from submerge.serving._folder import Folder
from submerge.store import layer_of

__all__ = ["Attached", "attach"]


class Attached:
    """The gated layers by name, the module that the tasks' outputs come from, and what the gate cannot do.

    `sequential` says that a gated parameter is used for all samples at once, so that a batch of several sets
    of tasks must be run set by set.
    """

    def __init__(self) -> None:
        self.layers: dict[str, GatedLayer] = {}
        self.heads: Heads | None = None
        self.sequential = False


def attach(
    model: Any, folder: Folder, gate: Gate, names: Mapping[str, str], *, heads: bool, partial: bool
) -> Attached:
    """Gate the model's layers, and return them.

    `names` are the model's names of the folder's tensors. With `partial` the model is only a part of the
    checkpoint, and tensors outside of its layers may be missing.
    """
    found = Attached()
    missing = [n for n in (*folder.factors, *folder.wholes) if n not in names]
    lost = [n for n in missing if not partial or layer_of(n) is not None]
    if lost:
        what = f"{type(model).__name__} has no parameters for updates in the bank: {few(lost)}"
        hint = "transformers keeps them in another form than the files, or the folder is of another model"
        raise RequestError(Problem(what, str(folder.path), hint))
    places = _places(model)
    by_module: dict[str, dict[str, Kept]] = {}
    origins: dict[int, torch.Tensor] = {}
    done: set[int] = set()
    for name in (*folder.factors, *folder.wholes):
        if name not in names:
            continue
        tensor = _tensor(model, names[name])
        if id(tensor) in done:  # one parameter under two names: its update counts once
            continue
        done.add(id(tensor))
        for path, local in places[id(tensor)]:
            module = model.get_submodule(path)
            kept = _kept(folder, gate, name, module, path)
            kept.origin = _origin(folder, name, tensor, origins)
            by_module.setdefault(path, {})[local] = kept
            if isinstance(module, nn.Embedding) and "relative_attention_bias" in path:
                found.sequential = True  # rows are looked up by distance, for all samples at once
    if routes_on_base(folder.settings) or folder.settings["fixed"] == "base":
        _forget_merge(model, by_module)
    for path, parameters in by_module.items():
        found.layers[path] = gate_layer(gate, model.get_submodule(path), parameters, path)
    if heads:
        found.heads = _gate_heads(model, folder, gate, names)
    return found


def _places(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """Return where each parameter and buffer stands, by its identity: several places where it is tied."""
    found: dict[int, list[tuple[str, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=True):
        own = {**module._parameters, **module._buffers}
        for local, tensor in own.items():
            if tensor is not None:
                found.setdefault(id(tensor), []).append((path, local))
    return found


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    path, _, local = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(path), local)
    return found


def _kept(folder: Folder, gate: Gate, name: str, module: nn.Module, path: str) -> Kept:
    if name in folder.wholes:
        return Whole(gate, name, folder.wholes[name])
    settings: dict[str, Any] = {
        "rule": folder.settings["aggregate"],
        "scale": folder.settings["scale"],
        "turned": type(module).__name__ == "Conv1D",
        "table": isinstance(module, nn.Embedding),
    }
    if name in folder.tables:
        settings["tasks"] = len(folder.tasks)
        return Table(gate, f"{path}:{name}", folder.factors[name], **settings)
    return Factors(gate, f"{path}:{name}", folder.factors[name], **settings)


def _origin(
    folder: Folder, name: str, tensor: torch.Tensor, known: dict[int, torch.Tensor]
) -> torch.Tensor | None:
    """Return the base's values, θ_MT less what the merge added; None where the checkpoint is the base."""
    rule = folder.settings["fixed"]
    if rule == "base":
        return None
    if id(tensor) not in known:
        merged = tensor.detach().to(torch.float32)
        if name in folder.wholes:
            total = sum(d.float() for d in folder.wholes[name].values())
            made = merged - total / len(folder.tasks)
        elif name in folder.merged:
            made = merged - folder.merged[name].float()
        else:
            parts = folder.factors[name]
            shape = (merged.shape[0], merged.shape[1])
            tasks = folder.fixed.get(name, tuple(parts))
            update = Bank(shape, parts).merged(tasks, rule, folder.settings["scale"])
            made = merged - update.dense() if isinstance(update, LowRank) else merged
        known[id(tensor)] = made.to(tensor.dtype)
    return known[id(tensor)]


def _forget_merge(model: nn.Module, by_module: Mapping[str, Mapping[str, Kept]]) -> None:
    """Put the base's values into the parameters themselves: nothing needs those of the merge."""
    for path, parameters in by_module.items():
        module = model.get_submodule(path)
        for local, kept in parameters.items():
            if kept.origin is not None:
                getattr(module, local).data = kept.origin
                kept.origin = None


def _gate_heads(model: Any, folder: Folder, gate: Gate, names: Mapping[str, str]) -> Heads | None:
    """Give the tasks' own modules to each task; return the last, which the outputs come from."""
    named = [{names[n]: x for n, x in head.items() if n in names} for head in folder.heads]
    for mine, own, task in zip(named, folder.heads, folder.names, strict=True):
        if lost := [n for n in own if n not in names]:
            what = f"{type(model).__name__} has no place for tensors of {task}'s head: {few(lost)}"
            hint = "load it with features=True, or name the architecture"
            raise RequestError(Problem(what, str(folder.path), hint))
        if len(mine) != len(own):
            raise RequestError(Problem(f"two tensors of {task}'s head have one name", str(folder.path)))
    compete = folder.settings["heads"] != "router"
    paths = own_modules(model, named, folder.names)
    last: Heads | None = None
    for path in paths:
        module = model.get_submodule(path)
        order = [name for name, _ in module.named_parameters()]
        tasks = [{name: mine[f"{path}.{name}"] for name in order} for mine in named]
        if path == paths[-1]:
            head: Own = (last := Heads(gate, module, tasks, compete=compete, alone=len(paths) == 1))
        else:
            head = Own(gate, module, tasks)
        module.add_module("submerge", head)
        module.forward = Forward(module, head)
    if compete and len(paths) > 1:
        what = f"heads: {folder.settings['heads']} needs heads that are one module; these are {few(paths)}"
        raise RequestError(Problem(what, str(folder.path), "use heads: router"))
    return last
