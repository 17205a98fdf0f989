"""The table and the picture of what serving costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.replication.page import versions

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
        f"## A batch of {results['batch']} inputs of eight tasks, mixed",
        "",
        "| way | median ms | fastest ms | beside one model |",
        "|---|---|---|---|",
    ]
    alone = statistics.median(latency["ways"][ALONE]["seconds"])
    for way, found in latency["ways"].items():
        middle = statistics.median(found["seconds"])
        fastest = min(found["seconds"])
        lines.append(f"| {way} | {1e3 * middle:.0f} | {1e3 * fastest:.0f} | {middle / alone:.2f}× |")
    lines += [
        "",
        f"The dense way made a model for each of {latency['sets of the dense way']} sets of tasks; its "
        f"hidden states and those of gated layers differ by at most "
        f"{latency['greatest difference to dense']:.1e}.",
        "",
        "## Batches of many sets of tasks: a model for each set, or gated layers",
        "",
        "| which tasks run | inputs | sets | dense ms | gated ms | faster by | gated, all sets new, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["sets"]:
        dense, gated, first = (f"{1e3 * row[key]:.0f}" for key in ("dense", "gated", "first"))
        lines.append(
            f"| {row['choice']} | {row['batch']} | {row['sets']} | {dense} | {gated} | "
            f"{row['dense'] / row['gated']:.1f}× | {first} |"
        )
    sizes = latency["bytes"]
    together = sizes["merged"] + sizes["bank"]
    lines += [
        "",
        "## Storage",
        "",
        "| what | MB | beside the base |",
        "|---|---|---|",
    ]
    for what, size in (
        ("the base", sizes["base"]),
        ("the bank", sizes["bank"]),
        ("checkpoint and bank", together),
        ("eight fine-tunes", sizes["experts"]),
    ):
        lines.append(f"| {what} | {size / 1e6:.1f} | {size / sizes['base']:.2f}× |")
    if "compression" in results:
        lines += [
            "",
            f"## Compression, tasks named, {results['items']} validation items a task",
            "",
            "| compression | bank MB | with the checkpoint, beside the base | % of individual | worst task |",
            "|---|---|---|---|---|",
        ]
        for name, found in results["compression"].items():
            share = (sizes["merged"] + found["bank"]) / sizes["base"]
            worst = min(found["tasks"].values())
            lines.append(
                f"| `{name}` | {found['bank'] / 1e6:.1f} | {share:.2f}× | {100 * found['mean']:.1f} | "
                f"{100 * worst:.1f} |"
            )
    return "\n".join([*lines, ""])


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw latency as bars, and the score against storage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ways = results["latency"]["ways"]
    alone = statistics.median(ways[ALONE]["seconds"])
    ratios = {way: statistics.median(found["seconds"]) / alone for way, found in ways.items()}
    figure, (bars, curve) = plt.subplots(1, 2, figsize=(12, 4))
    bars.barh(list(ratios), list(ratios.values()), color="#1f6feb")
    for place, ratio in enumerate(ratios.values()):
        bars.annotate(f"{ratio:.2f}×", (ratio, place), (4, -3), textcoords="offset points", fontsize=8)
    bars.set_xscale("log")
    bars.invert_yaxis()
    bars.axvline(1, color="#111", linewidth=0.5)
    bars.set_xlabel("time of a mixed batch, beside one fine-tuned model")
    if found := results.get("compression"):
        sizes = results["latency"]["bytes"]
        for name, one in found.items():
            place = ((sizes["merged"] + one["bank"]) / sizes["base"], 100 * one["mean"])
            curve.plot(*place, "o", color="#1f6feb", markersize=4)
            curve.annotate(name, place, (4, 3), textcoords="offset points", fontsize=7)
        curve.axvline(2, color="#9aa5b1", linewidth=0.5)
        curve.set_xlabel("checkpoint and bank, beside the base")
        curve.set_ylabel("tasks named, % of the individual models")
    for axes in (bars, curve):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
