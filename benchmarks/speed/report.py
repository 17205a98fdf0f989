"""Shows the benchmark's results: a table in the terminal, Markdown, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.page import made_by, pyplot
from benchmarks.speed.bench import median

__all__ = ["markdown", "plot", "table"]

COLUMNS = (
    "method",
    "models read",
    "mergekit s",
    "submerge s",
    "ratio",
    "mergekit peak GB",
    "submerge peak GB",
    "inside s ÷ floor",
)
REUSED = "†"


def table(results: Mapping[str, Any]) -> Table:
    """Return the results for the terminal."""
    shown = Table(
        title=_title(results),
        caption=_notes(results, private=False),
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    shown.add_column(COLUMNS[0], no_wrap=True)
    for name in COLUMNS[1:]:
        shown.add_column(name.replace(" ", "\n", 1), justify="right")
    for row in _rows(results, private=False):
        shown.add_row(*row)
    return shown


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown page that says how it was made."""
    lines = [
        f"# {_title(results)}",
        "",
        *made_by(results),
        "| " + " | ".join(COLUMNS) + " |",
        "|---" + "|---:" * (len(COLUMNS) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in _rows(results)),
        "",
        _notes(results),
        "",
    ]
    return "\n".join(lines)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw time and memory of both tools, and the floor."""
    plt = pyplot()
    methods = list(results["methods"])
    tools = [t for t in ("mergekit", "submerge") if any(t in m for m in results["methods"].values())]
    colours = {"mergekit": "#9aa5b1", "submerge": "#1f6feb"}
    figure, (time, memory) = plt.subplots(
        1, 2, figsize=(11, 1.4 + 0.55 * len(methods)), sharey=True, layout="constrained"
    )
    height = 0.8 / len(tools)
    for place, tool in enumerate(tools):
        for axes, key, unit in ((time, "seconds", 1), (memory, "peak_bytes", 1e9)):
            at = [n + (place - (len(tools) - 1) / 2) * height for n in range(len(methods))]
            values = [_value(results["methods"][m], tool, key, unit) for m in methods]
            bars = axes.barh(at, [v or 0 for v in values], height * 0.92, color=colours[tool], label=tool)
            text = ["" if v is None else f"{v:.3g}" for v in values]
            axes.bar_label(bars, text, padding=3, fontsize=8)
    for number, method in enumerate(methods):
        floor = median(results["floors"][str(results["methods"][method]["inputs"])])
        label = "floor: only reading and writing the bytes" if number == 0 else None
        time.plot([floor, floor], [number - 0.45, number + 0.45], color="#d1242f", lw=2, label=label)
    time.set_xscale("log")
    time.set_xlabel("seconds for the whole process, logarithmic")
    memory.set_xlabel("peak resident memory, GB (mapped file pages included)")
    time.set_yticks(range(len(methods)), methods)
    time.invert_yaxis()
    for axes in (time, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.14)
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(_title(results))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _title(results: Mapping[str, Any]) -> str:
    parameters = results["parameters"] / 1e6
    size = f"{parameters / 1e3:.1f} B" if parameters >= 1e3 else f"{parameters:.2g} M"
    return f"Merging {size}-parameter bf16 models, {results['threads']} threads, warm page cache"


def _rows(results: Mapping[str, Any], private: bool = True) -> list[list[str]]:
    rows = []
    for method, result in results["methods"].items():
        ours = _value(result, "submerge", "seconds")
        theirs = _value(result, "mergekit", "seconds")
        floor = median(results["floors"][str(result["inputs"])], "seconds_inside")
        inside = _value(result, "submerge", "seconds_inside")
        mark = REUSED if result.get("mergekit", {}).get("reused") else ""
        rows.append(
            [
                method,
                str(result["inputs"]),
                _show(theirs, ".1f") + mark,
                _show(ours, ".1f" if ours is None or ours >= 10 else ".2f"),
                "–" if ours is None or theirs is None else f"{theirs / ours:.1f}×",
                _memory(result, "mergekit", private),
                _memory(result, "submerge", private),
                "–" if inside is None or not floor else f"{inside / floor:.2f}",
            ]
        )
    return rows


def _memory(result: Mapping[str, Any], tool: str, with_private: bool) -> str:
    peak, private = (_value(result, tool, key, 1e9) for key in ("peak_bytes", "private_bytes"))
    if peak is None or private is None or not with_private:
        return _show(peak, ".2f")
    return f"{peak:.2f} ({private:.2f})"


def _notes(results: Mapping[str, Any], private: bool = True) -> str:
    floors = "; ".join(
        f"{n} models read {median(floor, 'seconds_inside'):.2f} s"
        for n, floor in sorted(results["floors"].items())
    )
    reused = any(result.get("mergekit", {}).get("reused") for result in results["methods"].values())
    notes = [
        "Whole processes, one after another, median of "
        f"{results['repeats']} run{'s' if results['repeats'] > 1 else ''}.",
        "Peak GB is the largest resident set, mapped pages of files included"
        + ("; in brackets without them (sampled)." if private else "."),
        "Floor: a program that only reads the inputs, writes the output's bytes and waits for the disk "
        f"({floors}); both it and Submerge are compared without the start of Python and torch.",
    ]
    if reused:
        notes.append(f"{REUSED} measured in an earlier run on this machine.")
    return " ".join(notes)


def _value(result: Mapping[str, Any], tool: str, key: str, unit: float = 1) -> float | None:
    value = median(result[tool], key) if tool in result else None
    return None if value is None else value / unit


def _show(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
