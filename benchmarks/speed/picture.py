"""Draws the benchmark's results: time and memory of both tools, and the floor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.page import pyplot
from benchmarks.speed.report import part_title, title
from benchmarks.speed.rows import Row, rows

__all__ = ["plot"]

TOOLS = {"mergekit": ("theirs", "their_peak_gb", "#9aa5b1"), "submerge": ("ours", "peak_gb", "#1f6feb")}
"""Tool -> the names of its numbers in a row, and its colour."""


def plot(results: Mapping[str, Any], key: str, path: Path) -> None:
    """Draw one part of the results."""
    shown = list(rows(results, results["parts"][key]))
    figure, (time, memory) = pyplot().subplots(
        1, 2, figsize=(11, 1.4 + 0.55 * len(shown)), sharey=True, layout="constrained"
    )
    _bars(time, memory, shown)
    for number, row in enumerate(shown):
        if row.floor is not None:
            label = "floor: only reading and writing the bytes" if number == 0 else None
            ends = [number - 0.45, number + 0.45]
            time.plot([row.floor, row.floor], ends, color="#d1242f", lw=2, label=label)
    time.set_xscale("log")
    time.set_xlabel("seconds for the whole process, logarithmic")
    memory.set_xlabel("peak resident memory, GB (mapped file pages included)")
    time.set_yticks(range(len(shown)), [row.method for row in shown])
    time.invert_yaxis()
    for axes in (time, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.14)
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{title(results)}: {part_title(results['parts'][key])}")
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def _bars(time: Any, memory: Any, shown: list[Row]) -> None:
    tools = {name: what for name, what in TOOLS.items() if any(getattr(row, what[0]) for row in shown)}
    height = 0.8 / max(len(tools), 1)
    for place, (tool, (seconds, peak, colour)) in enumerate(tools.items()):
        at = [number + (place - (len(tools) - 1) / 2) * height for number in range(len(shown))]
        for axes, name in ((time, seconds), (memory, peak)):
            values = [getattr(row, name) for row in shown]
            bars = axes.barh(at, [value or 0 for value in values], height * 0.92, color=colour, label=tool)
            text = ["" if value is None else f"{value:.3g}" for value in values]
            axes.bar_label(bars, text, padding=3, fontsize=8)
