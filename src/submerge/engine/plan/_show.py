"""A plan as a few lines of text, and as tables for a notebook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from submerge.errors import few, size

if TYPE_CHECKING:
    from submerge.engine.plan._plan import MergePlan

__all__ = ["as_html", "as_text"]


def as_text(plan: MergePlan) -> str:
    """Return at most ten lines: the method, the models by their role, and what a merge costs."""
    roles: dict[str, list[str]] = {}
    for name, role, tensors, nbytes in _models(plan):
        roles.setdefault(role, []).append(f"{name} ({tensors} tensors, {nbytes})")
    rows = [*((role, few(names, 4)) for role, names in roles.items()), *_facts(plan)]
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"MergePlan: {plan.recipe.method.name}", *(f"  {n:<{width}}  {t}" for n, t in rows)])


def as_html(plan: MergePlan) -> str:
    """Return a table of the models, and one of what a merge will do and what it costs."""
    method = plan.recipe.method
    models = _table([("model", "role", "tensors", "size"), *_models(plan)], head=True)
    return f"<p><b>{escape(method.title)}</b> {escape(method.equation)}</p>{models}{_table(_facts(plan))}"


def _models(plan: MergePlan) -> list[tuple[str, str, str, str]]:
    return [
        (m.label, plan.role(index), str(len(m.tensors)), size(sum(e.nbytes for e in m.tensors.values())))
        for index, m in enumerate(plan.models)
    ]


def _facts(plan: MergePlan) -> list[tuple[str, str]]:
    kinds = Counter(tensor.treatment for tensor in plan.tensors)
    files = few([shard.file for shard in plan.shards]) or "an adapter"
    found = [
        ("tensors", ", ".join(f"{kind}: {count}" for kind, count in kinds.items())),
        ("reads", size(plan.bytes_read)),
        ("writes", f"{size(plan.bytes_written)}: {files}" if plan.shards else files),
        ("memory", f"at most {size(plan.budget.peak)} with {plan.budget.workers} workers"),
    ]
    if plan.gate:
        found.append(("keeps", f"a gate over {len(plan.gate.tasks)} tasks"))
    if plan.warnings:
        found.append(("warnings", f"{len(plan.warnings)}: {plan.warnings[0]}"))
    return found


def _table(rows: Iterable[Sequence[str]], *, head: bool = False) -> str:
    lines = []
    for number, row in enumerate(rows):
        cell = "th" if head and number == 0 else "td"
        lines.append("".join(f"<{cell}>{escape(text)}</{cell}>" for text in row))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
