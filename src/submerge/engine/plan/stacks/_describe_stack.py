"""What a plan says of layers that are stacked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from submerge.engine.plan.stacks._stack import SliceLayers, StackPlan
from submerge.names import layer_of, layer_stacks

__all__ = ["describe_stack", "stack_facts"]

_BAR = 48
"""The most cells of the bar that stands for a model's layers."""


def describe_stack(stack: StackPlan) -> list[dict[str, Any]]:
    """Return for each stack of layers its runs of layers, and which models' layers these are merged from.

    A run goes over several slices where the layers of the same models go on. `before` and `behind` are the
    models of the tensors before and behind the layers, and `unread` the layers of models that no slice has.
    """
    modules = dict.fromkeys(piece.module for piece in stack.slices if piece.module)
    return [_described(stack, module) for module in modules]


def stack_facts(stack: StackPlan) -> list[tuple[str, str]]:
    """Return a line on each stack of layers."""
    return [
        ("stack", f"{own['module']}: {own['layers']} layers, in {len(own['runs'])} runs")
        for own in describe_stack(stack)
    ]


def _described(stack: StackPlan, module: str) -> dict[str, Any]:
    slices = [piece for piece in stack.slices if piece.module == module]
    counts = [layer_stacks(model.tensors).get(module, 0) for model in stack.originals.models]
    return {
        "module": module,
        "layers": sum(piece.count for piece in slices),
        "runs": [_run(stack, run, counts) for run in _runs(slices)],
        "before": _beside(stack, slices[0]),
        "behind": _beside(stack, slices[-1]),
        "unread": _unread(stack, slices, counts),
    }


def _runs(slices: Sequence[SliceLayers]) -> list[list[SliceLayers]]:
    """Return slices that go on with the layers of the same models, together."""
    runs: list[list[SliceLayers]] = []
    for piece in slices:
        last = runs[-1][-1] if runs else None
        if last and piece.starts == {i: start + last.count for i, start in last.starts.items()}:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _run(stack: StackPlan, run: Sequence[SliceLayers], counts: Sequence[int]) -> dict[str, Any]:
    first, count = run[0], sum(piece.count for piece in run)
    return {
        "layers": _span(first.first, count),
        "sources": [
            {
                "model": stack.originals.models[i].label,
                "layers": _span(start, count),
                "bar": _bar(start, count, counts[i]),
            }
            for i, start in first.starts.items()
        ],
    }


def _span(first: int, count: int) -> str:
    """Return the numbers of layers as text: `8–15`."""
    return str(first) if count == 1 else f"{first}–{first + count - 1}"


def _bar(first: int, count: int, layers: int) -> str:
    """Return a picture of a model's layers, the first one on the left, with a run of them marked."""
    cells = min(_BAR, layers)
    start, stop = first * cells // layers, (first + count) * cells // layers
    marked = range(start, max(start + 1, stop))
    return "".join("█" if cell in marked else "·" for cell in range(cells))


def _beside(stack: StackPlan, piece: SliceLayers) -> list[str]:
    """Return the models that tensors outside of the layers are merged from, if a slice has any."""
    outside = any((layer_of(name) or ("",))[0] != piece.module for name in piece.names)
    return [stack.originals.models[i].label for i in piece.starts] if outside else []


def _unread(stack: StackPlan, slices: Iterable[SliceLayers], counts: Sequence[int]) -> dict[str, str]:
    """Return the layers of each model that no slice has, as text."""
    read: dict[int, set[int]] = {}
    for piece in slices:
        for i, start in piece.starts.items():
            read.setdefault(i, set()).update(range(start, start + piece.count))
    left = {i: [n for n in range(counts[i]) if n not in own] for i, own in read.items()}
    return {stack.originals.models[i].label: _spans(numbers) for i, numbers in left.items() if numbers}


def _spans(numbers: Sequence[int]) -> str:
    """Return numbers as text, with those that follow one another as spans: `0–3, 8`."""
    starts = [i for i, n in enumerate(numbers) if i == 0 or n != numbers[i - 1] + 1]
    ends = [*starts[1:], len(numbers)]
    return ", ".join(_span(numbers[a], b - a) for a, b in zip(starts, ends, strict=True))
