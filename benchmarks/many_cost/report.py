"""The page of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.page import Table, checks, made_by, table_lines

__all__ = ["markdown"]

MINUTES, CORES, PEAK, TASK = 10, 2, 6e9, 100e6
"""What must hold of `add`: its time on two cores, its memory, and the bytes of a task beside moments."""

HEADER = 1 << 24
"""Bytes that a file with large moments reserves for its header, however many blocks there are."""


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page with a table for each way to keep moments, and what must hold."""
    held = [row for keep in results["steps"] for row in _checks(results, keep)]
    lines = [
        "# What a task costs that is added to a state",
        "",
        *made_by(results),
        f"A base of the shape {results['size']} with {results['blocks']} blocks, adapters of rank 16 in "
        f"bfloat16 on all linear maps, {results['tokens']} tokens a task, {results['threads']} threads of "
        "torch. Inputs are noise in bfloat16 with three channels that are 1000 times larger; they are summed "
        "by what `add` sums with, without the passes of the model. Whole processes; the peak is the largest "
        "resident set. CPU s are those of all threads. Scaled they are without the imports, and for all "
        f"{results['all_blocks']} blocks: what it takes where nothing else runs, on one core. "
        "Bytes are without the 17 MB of header that a file of large moments has.",
        "",
        *table_lines([_table(results, keep) for keep in results["steps"]]),
        *table_lines([checks("What must hold", held)]),
    ]
    return "\n".join(lines)


def _table(results: Mapping[str, Any], keep: str) -> Table:
    rows = [
        [
            name,
            f"{one['seconds']:.0f}",
            f"{one['cpu_seconds']:.0f}",
            f"{_scale(results) * one['cpu_inside']:.0f}",
            f"{one['peak_bytes'] / 1e9:.2f}",
            f"{_scale(results) * _own_bytes(one) / 1e6:.0f}",
            f"{_scale(results) * _moment_bytes(one) / 1e9:.2f}",
        ]
        for name, one in results["steps"][keep].items()
    ]
    columns = ["step", "s", "CPU s", "CPU s, scaled", "peak GB", "MB a task, scaled", "GB of moments, scaled"]
    return f"--keep {keep}", columns, rows


def _scale(results: Mapping[str, Any]) -> float:
    """Return how many times the blocks that were measured all of them are."""
    return float(results["all_blocks"] / results["blocks"])


def _own_bytes(step: Mapping[str, Any]) -> int:
    """Return the bytes of the largest task beside its moments."""
    return max(task["bytes"] - task["moments"] - _header(task["moments"]) for task in step["tasks"])


def _moment_bytes(step: Mapping[str, Any]) -> int:
    """Return the bytes of all moments of a state."""
    own = sum(task["moments"] for task in step["tasks"])
    return int(step["running"] - _header(step["running"]) + own)


def _header(moments: float) -> int:
    """Return the bytes of the header of a file with so many bytes of moments, as far as it is not small."""
    return HEADER if moments > HEADER else 0


def _checks(results: Mapping[str, Any], keep: str) -> list[tuple[str, bool, str]]:
    adds = [one for name, one in results["steps"][keep].items() if name.startswith("add")]
    seconds = _scale(results) * max(one["cpu_inside"] for one in adds) / CORES
    peak, own = max(one["peak_bytes"] for one in adds), _scale(results) * max(map(_own_bytes, adds))
    return [
        (
            f"--keep {keep}: minutes of an add",
            seconds < 60 * MINUTES,
            f"{seconds / 60:.1f}, to be {MINUTES}",
        ),
        (f"--keep {keep}: memory of an add", peak < PEAK, f"{peak / 1e9:.2f} GB, to be {PEAK / 1e9:g}"),
        (f"--keep {keep}: a task beside moments", own < TASK, f"{own / 1e6:.0f} MB, to be {TASK / 1e6:g}"),
    ]
