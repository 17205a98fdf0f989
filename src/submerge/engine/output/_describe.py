"""A plan as plain data, for `submerge plan` and `submerge explain`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from submerge.engine.plan import (
    Input,
    MergePlan,
    TensorPlan,
    adapter_file,
    bank_bounds,
    bank_bytes,
    describe_mixture,
    describe_projectors,
    describe_specialist,
    describe_stack,
    explain_mixed,
    stream_parts,
)
from submerge.errors import Problem, RequestError
from submerge.names import depths
from submerge.recipe import Resolved, resolve
from submerge.store import BANK, Adapter

__all__ = ["describe", "explain"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def describe(plan: MergePlan) -> dict[str, Any]:
    """Return what a merge will read, compute and write, as JSON-able data.

    Tensors are grouped by what happens to them and by name, with layer numbers as `*`.
    """
    recipe = plan.recipe
    return {
        "method": recipe.method.name,
        "equation": recipe.method.equation,
        "models": [
            _model(plan, position) for position in range(len(plan.models)) if not _is_computed(plan, position)
        ],
        **({"stack": describe_stack(plan.stack)} if plan.stack else {}),
        **({"mixture": describe_mixture(plan.mixture)} if plan.mixture else {}),
        "groups": _groups(plan.tensors),
        "vocabulary": list(plan.vocabulary),
        "warnings": list(plan.warnings),
        **({"coefficients": recipe.weights_from} if recipe.weights_from else {}),
        "reads": plan.bytes_read,
        **({"virtual_reads": plan.virtual_reads} if plan.virtual_reads else {}),
        "writes": plan.bytes_written,
        **({"bank": _bank(plan)} if plan.gate_record else {}),
        **({"specialists": _specialists(plan)} if plan.composition else {}),
        **({"projectors": describe_projectors(own, recipe, plan.models)} if (own := plan.projectors) else {}),
        "files": {shard.file: shard.size for shard in plan.shards},
        **({} if plan.shards else {"adapter_file": adapter_file(plan.tensors, plan.models)}),
        "side_files": [str(file) for _, file in plan.carried],
        "workers": plan.budget.workers,
        "memory": plan.budget.peak,
    }


def _is_computed(plan: MergePlan, position: int) -> bool:
    """Return whether a model is none of the recipe's: it has what no file of a mixture has."""
    return plan.mixture is not None and plan.mixture.gates == position


def _model(plan: MergePlan, position: int) -> dict[str, Any]:
    """Return what is said of one model; tensors that stand there under a second name are counted once."""
    model = (plan.stack.originals if plan.stack else plan.inputs).models[position]
    stored = {name: entry for name, entry in model.tensors.items() if name not in model.aliases}
    return {
        "model": model.label,
        "role": plan.role(position),
        "tensors": len(stored),
        "bytes": sum(entry.nbytes for entry in stored.values()),
        **({"revision": model.revision} if model.revision else {}),
        **({"names": model.renamed} if model.views else {}),
        **({"adapter": _adapter(model.adapter)} if model.adapter else {}),
        **({"unused": list(plan.unused[position])} if position in plan.unused else {}),
    }


def _bank(plan: MergePlan) -> dict[str, Any]:
    """Return what is written for a gate: the tasks with their heads, the settings, the most bytes."""
    assert plan.gate_record is not None
    return {**plan.gate_record.to_json(), "file": BANK, "most": bank_bytes(plan)}


def _specialists(plan: MergePlan) -> list[dict[str, Any]]:
    """Return where the pieces of a composed model's specialists lie."""
    assert plan.composition is not None
    return [describe_specialist(own, plan.composition, plan.models) for own in plan.composition.specialists]


def _adapter(adapter: Adapter) -> dict[str, Any]:
    return {"parts": len(adapter.parts), "rank": adapter.rank, "notes": list(adapter.notes)}


class _Group(NamedTuple):
    """What the tensors of one line of a plan have in common."""

    pattern: str
    treatment: str
    matrix: bool
    shape: tuple[int, ...]
    reads: tuple[str, ...]
    writes: str
    why: str

    @classmethod
    def of(cls, tensor: TensorPlan) -> _Group:
        """Return the group that a tensor belongs to."""
        return cls(
            pattern=_NUMBER.sub("*", tensor.name),
            treatment=tensor.treatment,
            matrix=tensor.matrix and len(tensor.shape) == 2 and not tensor.table,
            shape=tensor.shape,
            reads=tuple(dict.fromkeys(_reads(member) for member in tensor.members)),
            writes=_writes(tensor),
            why=tensor.why,
        )


def _groups(tensors: Sequence[TensorPlan]) -> list[dict[str, Any]]:
    groups: defaultdict[_Group, list[TensorPlan]] = defaultdict(list)
    for tensor in tensors:
        groups[_Group.of(tensor)].append(tensor)
    return [
        {
            "tensors": group.pattern,
            "count": len(members),
            "shape": list(group.shape),
            "treatment": group.treatment,
            **({"matrix": True} if group.matrix else {}),
            "reads": list(group.reads),
            "writes": group.writes,
            "elements": sum(member.numel for member in members),
            **({"why": group.why} if group.why else {}),
        }
        for group, members in groups.items()
    ]


def _reads(member: Input) -> str:
    """Return what is read for one member of a fold: a dtype, an adapter's update, or both."""
    update = f"rank {member.rank}" if member.rank else "adapter" if member.patch else ""
    if member.relative:
        return update or "nothing"
    return f"{member.entry.dtype} + {update}" if update else member.entry.dtype


def _writes(tensor: TensorPlan) -> str:
    """Return what is written for a tensor: factors, or values of a dtype."""
    if tensor.module is None:
        return tensor.dtype
    return "factors" if tensor.module.table is None else "factors and the values without them"


def explain(plan: MergePlan, pattern: str) -> list[dict[str, Any]]:
    """Return, for each tensor that matches, what happens to it, the value of each option, and why.

    `pattern` is a part of a name, or a shell pattern with `*`, `?` or `[…]`. Raises `RequestError`
    if nothing matches.
    """
    names = [tensor.name for tensor in plan.tensors]
    if any(c in pattern for c in "*?["):
        chosen = {name for name in names if fnmatchcase(name, pattern)}
    else:
        chosen = {name for name in names if pattern in name}
    if not chosen:
        raise RequestError(
            Problem(f"no tensor matches {pattern!r}", "--tensor", f"names look like {names[0]!r}")
        )
    depth = depths(names)
    if plan.stack:
        depth = {name: plan.stack.of(name).depths[name] for name in names}
    return [_explained(plan, t, depth[t.parameter or t.name]) for t in plan.tensors if t.name in chosen]


def _explained(plan: MergePlan, tensor: TensorPlan, depth: float) -> dict[str, Any]:
    """Return what happens to one tensor, which lies at `depth` in [0, 1] of the model."""
    return {
        "tensor": tensor.name,
        "shape": list(tensor.shape),
        "depth": depth,
        "treatment": tensor.treatment,
        "writes": _writes(tensor),
        "reads": [_member(plan, member) for member in tensor.members],
        **({"why": tensor.why} if tensor.why else {}),
        **({"options": options} if (options := _options(plan, tensor, depth)) else {}),
        **({"keeps": parts} if (parts := _bank_parts(plan, tensor)) else {}),
        **({"streams": _streams(plan, tensor)} if plan.composition else {}),
    }


def _member(plan: MergePlan, member: Input) -> dict[str, Any]:
    """Return what is read of one model for a tensor."""
    model = plan.models[member.model]
    return {
        "model": model.label,
        "tensor": model.stored_as(member.entry.name),
        "dtype": _reads(member),
        **({"note": member.note} if member.note else {}),
    }


def _options(plan: MergePlan, tensor: TensorPlan, depth: float) -> dict[str, list[dict[str, Any]]]:
    """Return the value of each option and why, with one for each model where models may differ.

    What is copied has none.
    """
    if tensor.treatment == "mixture":
        assert plan.mixture is not None
        return explain_mixed(plan.mixture, tensor.name, tensor.values)
    if tensor.treatment != "merge":
        return {}
    name = tensor.parameter or tensor.name
    of_slice = plan.stack.of(name) if plan.stack else None
    participants = (of_slice.recipe if of_slice else plan.recipe).participants

    def lines(resolved: Resolved | list[Resolved]) -> list[dict[str, Any]]:
        if isinstance(resolved, Resolved):
            return [{"value": resolved.value, "why": resolved.why}]
        return [
            {"value": own.value, "why": own.why, "model": entry.model}
            for own, entry in zip(resolved, participants, strict=True)
        ]

    options = (of_slice.options(name) if of_slice else resolve(plan.recipe, name, depth)).options
    return {name: lines(resolved) for name, resolved in options.items()}


def _streams(plan: MergePlan, tensor: TensorPlan) -> list[dict[str, Any]]:
    """Return what the tokens of each modality run with; empty where that is what text runs with."""
    return [
        {"modality": modality, "runs_with": part.runs_with, "bytes": part.nbytes}
        for modality, part in stream_parts(plan, tensor).items()
    ]


def _bank_parts(plan: MergePlan, tensor: TensorPlan) -> list[dict[str, Any]]:
    """Return the most that the bank holds of a tensor: for each task, and once for all of them."""
    bounds = bank_bounds(plan, tensor)
    parts: list[dict[str, Any]] = [
        {"task": task, "bytes": bound.nbytes, **({"rank": bound.rank} if bound.rank is not None else {})}
        for task, bound in bounds.items()
    ]
    shared = max((bound.shared for bound in bounds.values()), default=0)
    return [*parts, {"bytes": shared}] if shared else parts  # the update that the checkpoint has
