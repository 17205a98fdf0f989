"""The tasks' own modules: a head in most models, of which each task has its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from submerge.errors import Problem, RequestError, few
from submerge.gating import CompetingHeads, Gate, Heads, SelectedBranches, branch_module
from submerge.serving._folder import Folder

__all__ = ["attach_heads", "own_modules"]


def attach_heads(model: Any, folder: Folder, gate: Gate, names: Mapping[str, str]) -> Heads | None:
    """Give the tasks' own modules to each task; return the last, which the outputs come from.

    `names` are the model's names of the folder's tensors.
    """
    heads = [_named_head(model, folder, names, task) for task in range(len(folder.tasks))]
    rule = folder.settings.get("heads", "router")
    competing = rule != "router"
    paths = own_modules(model, heads, folder.names)
    last: Heads | None = None
    for path in paths:
        module = model.get_submodule(path)
        dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
        sets = [{name: head[f"{path}.{name}"].to(dtype) for name, dtype in dtypes.items()} for head in heads]
        if path != paths[-1]:
            branch_module(module, SelectedBranches(gate, sets))
            continue
        last = (CompetingHeads if competing else Heads)(gate, module, sets, alone=len(paths) == 1)
        branch_module(module, last)
    if competing and len(paths) > 1:
        what = f"heads: {rule} needs heads that are one module; these are {few(paths)}"
        raise RequestError(Problem(what, str(folder.path), "use heads: router"))
    return last


def _named_head(model: Any, folder: Folder, names: Mapping[str, str], task: int) -> dict[str, torch.Tensor]:
    """Return a task's own tensors by the model's names."""
    own = folder.heads[task]
    if lost := [name for name in own if name not in names]:
        what = f"{type(model).__name__} has no place for tensors of {folder.names[task]}'s head: {few(lost)}"
        hint = "load it with features=True, or name the architecture"
        raise RequestError(Problem(what, str(folder.path), hint))
    named = {names[name]: tensor for name, tensor in own.items()}
    if len(named) != len(own):
        what = f"two tensors of {folder.names[task]}'s head have one name"
        raise RequestError(Problem(what, str(folder.path)))
    return named


def own_modules(
    model: nn.Module, heads: Sequence[Mapping[str, torch.Tensor]], names: Sequence[str]
) -> list[str]:
    """Return the largest modules whose parameters are all the tasks' own, in the model's order.

    `heads` are the tasks' own parameters by the model's names. Raises `RequestError` where a task lacks one
    that another has.
    """
    wanted = {name for head in heads for name in head}
    for head, task in zip(heads, names, strict=True):
        if missing := sorted(wanted - head.keys()):
            what = f"the head of {task} lacks {few(missing)}, which another task's has"
            raise RequestError(Problem(what, "", "serve tasks with heads of one kind"))
    paths: list[str] = []
    for path, module in model.named_modules():
        parameters = [f"{path}.{name}" for name, _ in module.named_parameters()]
        inner = any(path.startswith(outer + ".") for outer in paths)
        if path and parameters and not inner and all(name in wanted for name in parameters):
            paths.append(path)
    placed = {n for n in wanted if any(n.startswith(path + ".") for path in paths)}
    if placed != wanted:
        what = f"{few(sorted(wanted - placed))} stand in modules that all tasks share"
        raise RequestError(Problem(what, "", "name only heads with 'head:'"))
    return paths
