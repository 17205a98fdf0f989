"""The table and the picture of what serving costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.page import Table, pyplot, save, table_lines, versions

__all__ = ["draw", "markdown"]

ALONE = "one fine-tuned model"


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page with latency, storage and compression."""
    machine, latency = results["machine"], results["latency"]
    lines = [
        "# Serving: MASS on eight fine-tunes of MiniLM",
        "",
        f"Made by `{results['command']}` on {results['date']}.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {results['threads']} thread of torch; "
        f"{machine['system']}, Python {machine['python']}, {versions(machine)}. Load before: "
        f"{results['load_before']:.2f}.",
        "",
        *table_lines([_latency(results)]),
        f"The dense way made a model for each of {latency['sets of the dense way']} sets of tasks; its "
        f"hidden states and those of gated layers differ by at most "
        f"{latency['greatest difference to dense']:.1e}.",
        "",
        *table_lines([_sets(results), _storage(results)]),
    ]
    if "compression" in results:
        lines += table_lines([_compression(results)])
    return "\n".join(lines)


def _latency(results: Mapping[str, Any]) -> Table:
    ways = results["latency"]["ways"]
    alone = statistics.median(ways[ALONE]["seconds"])
    rows = []
    for way, times in ways.items():
        median, fastest = statistics.median(times["seconds"]), min(times["seconds"])
        rows.append([way, f"{1e3 * median:.0f}", f"{1e3 * fastest:.0f}", f"{median / alone:.2f}×"])
    title = f"A batch of {results['batch']} inputs of eight tasks, mixed"
    return title, ["way", "median ms", "fastest ms", "beside one model"], rows


def _sets(results: Mapping[str, Any]) -> Table:
    columns = [
        "which tasks run",
        "inputs",
        "sets",
        "dense ms",
        "gated ms",
        "faster by",
        "gated, all sets new, ms",
    ]
    rows = []
    for one in results["sets"]:
        dense, gated, first = (f"{1e3 * one[key]:.0f}" for key in ("dense", "gated", "first"))
        faster = f"{one['dense'] / one['gated']:.1f}×"
        rows.append([one["choice"], f"{one['batch']}", f"{one['sets']}", dense, gated, faster, first])
    return "Batches of many sets of tasks: a model for each set, or gated layers", columns, rows


def _storage(results: Mapping[str, Any]) -> Table:
    sizes = results["latency"]["bytes"]
    stored = {
        "the base": sizes["base"],
        "the bank": sizes["bank"],
        "checkpoint and bank": sizes["merged"] + sizes["bank"],
        "eight fine-tunes": sizes["experts"],
    }
    rows = [[what, f"{size / 1e6:.1f}", f"{size / sizes['base']:.2f}×"] for what, size in stored.items()]
    return "Storage", ["what", "MB", "beside the base"], rows


def _compression(results: Mapping[str, Any]) -> Table:
    sizes = results["latency"]["bytes"]
    columns = [
        "compression",
        "bank MB",
        "with the checkpoint, beside the base",
        "% of individual",
        "worst task",
    ]
    rows = []
    for name, one in results["compression"].items():
        share, worst = (sizes["merged"] + one["bank"]) / sizes["base"], min(one["tasks"].values())
        scores = [f"{100 * one['mean']:.1f}", f"{100 * worst:.1f}"]
        rows.append([f"`{name}`", f"{one['bank'] / 1e6:.1f}", f"{share:.2f}×", *scores])
    return f"Compression, tasks named, {results['items']} validation items a task", columns, rows


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw latency as bars, and the score against storage."""
    plt = pyplot()
    ways = results["latency"]["ways"]
    alone = statistics.median(ways[ALONE]["seconds"])
    ratios = {way: statistics.median(times["seconds"]) / alone for way, times in ways.items()}
    figure, (bars, curve) = plt.subplots(1, 2, figsize=(12, 4))
    bars.barh(list(ratios), list(ratios.values()), color="#1f6feb")
    for place, ratio in enumerate(ratios.values()):
        bars.annotate(f"{ratio:.2f}×", (ratio, place), (4, -3), textcoords="offset points", fontsize=8)
    bars.set_xscale("log")
    bars.invert_yaxis()
    bars.axvline(1, color="#111", linewidth=0.5)
    bars.set_xlabel("time of a mixed batch, beside one fine-tuned model")
    if scored := results.get("compression"):
        sizes = results["latency"]["bytes"]
        for name, one in scored.items():
            place = ((sizes["merged"] + one["bank"]) / sizes["base"], 100 * one["mean"])
            curve.plot(*place, "o", color="#1f6feb", markersize=4)
            curve.annotate(name, place, (4, 3), textcoords="offset points", fontsize=7)
        curve.axvline(2, color="#9aa5b1", linewidth=0.5)
        curve.set_xlabel("checkpoint and bank, beside the base")
        curve.set_ylabel("tasks named, % of the individual models")
    for axes in (bars, curve):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
