"""The page of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.page import Table, checks, made_by, table_lines

__all__ = ["markdown"]

MINUTES, PEAK, TASK = 10, 6e9, 100e6
"""What must hold of `add`: its time and memory, and the bytes of a task beside moments."""


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page with a table for each way to keep moments, and what must hold."""
    held = [row for keep, steps in results["steps"].items() for row in _checks(keep, steps)]
    lines = [
        "# What a task costs that is added to a state",
        "",
        *made_by(results),
        f"A base of the shape {results['size']} with {results['blocks']} blocks, adapters of rank 16 in "
        f"bfloat16 on all linear maps, {results['tokens']} tokens a task, {results['threads']} threads of "
        "torch. Inputs are noise in bfloat16 with three channels that are 1000 times larger; they are summed "
        "by what `add` sums with, without the passes of the model. Whole processes; the peak is the largest "
        "resident set. CPU s are those of all threads: what it takes where nothing else runs.",
        "",
        *table_lines([_table(keep, steps) for keep, steps in results["steps"].items()]),
        *table_lines([checks("What must hold", held)]),
    ]
    return "\n".join(lines)


def _table(keep: str, steps: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{one['seconds']:.0f}",
            f"{one['cpu_seconds']:.0f}",
            f"{one['peak_bytes'] / 1e9:.2f}",
            f"{_own_bytes(one) / 1e6:.0f}",
            f"{_moment_bytes(one) / 1e9:.2f}",
        ]
        for name, one in steps.items()
    ]
    columns = ["step", "s", "CPU s", "peak GB", "MB a task", "GB of moments"]
    return f"--keep {keep}", columns, rows


def _own_bytes(step: Mapping[str, Any]) -> int:
    """Return the bytes of the largest task beside its moments."""
    return max(task["bytes"] - task["moments"] for task in step["tasks"])


def _moment_bytes(step: Mapping[str, Any]) -> int:
    """Return the bytes of all moments of a state."""
    return step["running"] + sum(task["moments"] for task in step["tasks"])


def _checks(keep: str, steps: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    adds = [one for name, one in steps.items() if name.startswith("add")]
    seconds, peak = (max(one[key] for one in adds) for key in ("seconds", "peak_bytes"))
    own = max(map(_own_bytes, adds))
    return [
        (f"--keep {keep}: minutes of an add", seconds < 60 * MINUTES, f"{seconds / 60:.1f}, to be {MINUTES}"),
        (f"--keep {keep}: memory of an add", peak < PEAK, f"{peak / 1e9:.2f} GB, to be {PEAK / 1e9:g}"),
        (f"--keep {keep}: a task beside moments", own < TASK, f"{own / 1e6:.0f} MB, to be {TASK / 1e6:g}"),
    ]
