"""A plan as plain data, for `submerge plan` and `submerge explain`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from submerge.engine.output._bank import bank_bounds, bank_bytes
from submerge.engine.plan import Input, MergePlan, TensorPlan, adapter_file
from submerge.errors import Problem, RequestError
from submerge.recipe import Resolved, resolve
from submerge.store import BANK, Adapter, depths

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
            {
                "model": model.label,
                "role": plan.role(index),
                "tensors": len(model.tensors.keys() - model.aliases.keys()),
                "bytes": sum(e.nbytes for n, e in model.tensors.items() if n not in model.aliases),
                **({"revision": model.revision} if model.revision else {}),
                **({"names": model.renamed} if model.views else {}),
                **({"adapter": _adapter(model.adapter)} if model.adapter else {}),
                **({"unused": list(plan.unused[index])} if index in plan.unused else {}),
            }
            for index, model in enumerate(plan.models)
        ],
        "groups": _groups(plan.tensors),
        "vocabulary": list(plan.vocabulary),
        "warnings": list(plan.warnings),
        "reads": plan.bytes_read,
        "writes": plan.bytes_written,
        **({"bank": _bank(plan)} if plan.gate else {}),
        "files": {shard.file: shard.size for shard in plan.shards},
        **({} if plan.shards else {"adapter_file": adapter_file(plan.tensors, plan.models)}),
        "side_files": [str(file) for _, file in plan.carried],
        "workers": plan.budget.workers,
        "memory": plan.budget.peak,
    }


def _bank(plan: MergePlan) -> dict[str, Any]:
    """Return what the output keeps for its gate: the tasks with their heads, the settings, the most bytes."""
    assert plan.gate is not None
    return {**plan.gate.record(plan.models).to_json(), "file": BANK, "most": bank_bytes(plan)}


def _adapter(adapter: Adapter) -> dict[str, Any]:
    return {"parts": len(adapter.parts), "rank": adapter.rank, "notes": list(adapter.notes)}


def _reads(member: Input) -> str:
    """Return what is read for one member of a fold: a dtype, an adapter's update, or both."""
    update = f"rank {member.rank}" if member.rank else "adapter" if member.patch else ""
    if member.relative:
        return update or "nothing"
    return f"{member.entry.dtype} + {update}" if update else member.entry.dtype


def _groups(tensors: Sequence[TensorPlan]) -> list[dict[str, Any]]:
    groups: defaultdict[tuple[Any, ...], list[TensorPlan]] = defaultdict(list)
    for tensor in tensors:
        pattern = _NUMBER.sub("*", tensor.name)
        read = tuple(dict.fromkeys(_reads(i) for i in tensor.members))
        written = "factors" if tensor.module else tensor.dtype
        matrix = tensor.matrix and len(tensor.shape) == 2 and not tensor.table
        key = (pattern, tensor.treatment, matrix, tensor.shape, read, written, tensor.why)
        groups[key].append(tensor)
    return [
        {
            "tensors": pattern,
            "count": len(members),
            "shape": list(shape),
            "treatment": treatment,
            **({"matrix": True} if matrix else {}),
            "reads": list(read),
            "writes": dtype,
            "elements": sum(m.numel for m in members),
            **({"why": why} if why else {}),
        }
        for (pattern, treatment, matrix, shape, read, dtype, why), members in groups.items()
    ]


def explain(plan: MergePlan, pattern: str) -> list[dict[str, Any]]:
    """Return, for each tensor that matches, what happens to it, the value of each option, and why.

    `pattern` is a part of a name, or a shell pattern with `*`, `?` or `[…]`. Raises `RequestError`
    if nothing matches.
    """
    names = [t.name for t in plan.tensors]
    if any(c in pattern for c in "*?["):
        chosen = {n for n in names if fnmatchcase(n, pattern)}
    else:
        chosen = {n for n in names if pattern in n}
    if not chosen:
        raise RequestError(
            Problem(f"no tensor matches {pattern!r}", "--tensor", f"names look like {names[0]!r}")
        )
    deep = depths(names)
    return [_explained(plan, t, deep[t.parameter or t.name]) for t in plan.tensors if t.name in chosen]


def _explained(plan: MergePlan, tensor: TensorPlan, depth: float) -> dict[str, Any]:
    line: dict[str, Any] = {
        "tensor": tensor.name,
        "shape": list(tensor.shape),
        "depth": depth,
        "treatment": tensor.treatment,
        "writes": "factors" if tensor.module else tensor.dtype,
        "reads": [
            {
                "model": plan.models[i.model].label,
                "tensor": plan.models[i.model].stored_as(i.entry.name),
                "dtype": _reads(i),
                **({"note": i.note} if i.note else {}),
            }
            for i in tensor.members
        ],
    }
    if tensor.why:
        line["why"] = tensor.why
    if tensor.treatment == "merge":
        found = resolve(plan.recipe, tensor.parameter or tensor.name, depth).options
        line["options"] = {
            name: [
                {"value": r.value, "why": r.why, **({"model": label} if label else {})}
                for r, label in _each(plan, value)
            ]
            for name, value in found.items()
        }
    if bounds := bank_bounds(plan, tensor):
        line["keeps"] = [
            {"task": task, "bytes": b.nbytes, **({"rank": b.rank} if b.rank is not None else {})}
            for task, b in bounds.items()
        ]
        if shared := max(b.shared for b in bounds.values()):  # the update that the checkpoint has
            line["keeps"].append({"bytes": shared})
    return line


def _each(plan: MergePlan, value: Resolved | list[Resolved]) -> list[tuple[Resolved, str]]:
    if isinstance(value, Resolved):
        return [(value, "")]
    return [(r, entry.model) for r, entry in zip(value, plan.recipe.participants, strict=True)]
