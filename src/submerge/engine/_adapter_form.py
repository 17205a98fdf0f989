"""Which updates an adapter can hold, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from submerge.engine._tables import is_matrix
from submerge.engine._tensor import Module, TensorPlan
from submerge.errors import Problem, few
from submerge.store import Checkpoint, LowRank

__all__ = ["adapter_form", "turned"]


def adapter_form(
    tensors: Sequence[TensorPlan], models: Sequence[Checkpoint], donor: int
) -> tuple[list[TensorPlan], list[Problem]]:
    """Return the tensors that an adapter holds or leaves out, and problems.

    A matrix, and whatever an adapter has factors of, becomes factors. What an adapter replaces (a head,
    `modules_to_save`) is saved whole, if it is all parameters of its module. Others have no place.
    """
    transposed = turned(models[donor])
    whole = _whole(models, donor)
    held: list[TensorPlan] = []
    packed: list[str] = []
    for tensor in tensors:
        if tensor.treatment != "merge" or all(i.relative and not i.patch for i in tensor.inputs):
            continue
        parts = [
            a.parts.get(tensor.name) for i in tensor.inputs if (a := models[i.model].adapter) is not None
        ]
        factors = [part for part in parts if isinstance(part, LowRank)]
        if any(part.experts and part.expert is None for part in factors):
            packed.append(tensor.name)
        elif tensor.name in whole:
            held.append(tensor)
        elif factors:
            held.append(replace(tensor, module=_module(factors[0])))
        elif is_matrix(tensor.name, tensor.shape, models[donor].config):
            held.append(replace(tensor, module=Module(transposed=transposed)))
        else:
            held.append(replace(tensor, treatment="drop", matrix=False, why="an adapter has no place for it"))
    # updates that need no values of the base are merged without reading it
    held = [replace(t, origin=None) if t.module and all(i.relative for i in t.inputs) else t for t in held]
    problems = []
    if packed:
        hint = "write a checkpoint (output: {as: checkpoint})"
        what = f"the portable form of an adapter has no place for packed experts: {few(packed)}"
        problems.append(Problem(what, "output", hint))
    if all(tensor.treatment == "drop" for tensor in held) and not problems:
        problems.append(
            Problem("no model changes a matrix: there is nothing for an adapter to hold", "output")
        )
    return held, problems


def _module(part: LowRank) -> Module:
    return Module(part.kind, part.transposed and part.kind != "embedding", part.kernel)


def _whole(models: Sequence[Checkpoint], donor: int) -> set[str]:
    """Return the tensors that adapters replace, of modules of which they replace all."""
    replaced = {name for model in models if model.adapter for name in model.adapter.whole}
    others = {name.rpartition(".")[0] for name in models[donor].tensors.keys() - replaced}
    return {name for name in replaced if name.rpartition(".")[0] not in others}


def turned(base: Checkpoint) -> bool:
    """Return whether the base keeps its linear maps as [in, out], as GPT-2 does; their biases tell."""
    votes = 0
    for name, entry in base.tensors.items():
        bias = base.tensors.get(f"{name.removesuffix('.weight')}.bias")
        if bias is not None and len(entry.shape) == 2 and entry.shape[0] != entry.shape[1]:
            votes += (bias.shape == entry.shape[1:]) - (bias.shape == entry.shape[:1])
    return votes > 0
