"""The page of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.page import Table, checks, made_by, table_lines

__all__ = ["markdown", "step_bytes"]

FASTER, SMALLER, CLOSE = 3.0, 2.0, 1e-5
"""What must hold: how many times less time and memory, and how near the losses are."""


def step_bytes(way: Mapping[str, Any]) -> int:
    """Return the bytes that a process held at most, less what it held before: model and libraries."""
    return int(way["peak"] - way["before"])


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page with a table a model, and what must hold."""
    subjects = results["subjects"]
    lines = [
        "# What a step of learned merge coefficients costs",
        "",
        *made_by(results),
        f"A step has {results['size']} inputs of each task, {results['threads']} threads of torch, in "
        f"float32; times are means of {results['steps']}. Adapters of rank 16 change all linear maps of the "
        "blocks; hooks are those of the last quarter. The plain implementation "
        "(`benchmarks/calibration_cost/plain.py`) has K branches a linear map, an explicit projector for "
        "each task and hook, and full passes through the head, with all parameters as they are after "
        "loading. Memory is the process' peak less what it held before: model and libraries.",
        "",
        *table_lines([_table(one) for one in subjects.values()]),
        *table_lines([checks("What must hold", [row for one in subjects.values() for row in _checks(one)])]),
    ]
    return "\n".join(lines)


def _table(subject: Mapping[str, Any]) -> Table:
    rows = [
        [way, f"{one['seconds']:.2f}", f"{step_bytes(one) / 1e6:.0f}", f"{one['peak'] / 1e6:.0f}"]
        for way, one in subject["ways"].items()
    ]
    columns = ["way", "seconds a step", "MB of the steps", "MB of the process"]
    return f"{subject['title']}, {subject['adapters']} adapters", columns, rows


def _checks(subject: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    plain, ours = subject["ways"]["plain"], subject["ways"]["submerge"]
    time, memory = plain["seconds"] / ours["seconds"], step_bytes(plain) / step_bytes(ours)
    apart = max(abs(a - b) for a, b in zip(plain["loss"], ours["loss"], strict=True))
    title = subject["title"]
    return [
        (f"{title}: time", time >= FASTER, f"{time:.1f}× less, to be {FASTER:g}"),
        (f"{title}: memory of the steps", memory >= SMALLER, f"{memory:.1f}× less, to be {SMALLER:g}"),
        (f"{title}: losses", apart <= CLOSE, f"{apart:.1e} apart at most, to be {CLOSE:g}"),
    ]
