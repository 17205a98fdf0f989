"""Shows the results: tables in the terminal, Markdown, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks import page

__all__ = ["adapter_tables", "checkpoint_tables", "markdown", "plot", "show", "whole_merges"]


def adapter_tables(results: Mapping[str, Any]) -> list[page.Table]:
    """Return the tables of the first part: whole merges, and single modules."""
    single = [
        [
            name,
            _size(size),
            f"{one['ours']:.3g}",
            _bound(one) + f"{one['plain']:.3g}",
            _bound(one) + f"{one['plain'] / one['ours']:.0f}×",
            ", ".join(_step(step, times) for step, times in one["route"].items()),
        ]
        for size, rows in results["matrices"].items()
        for name, one in rows.items()
    ]
    columns = ["method", "module", "submerge s", "plain s", "ratio", "plain route"]
    return [whole_merges(results), ("One module, beside plain decompositions", columns, single)]


def whole_merges(results: Mapping[str, Any]) -> page.Table:
    """Return the table of merges of adapters into an adapter, each as a process."""
    title = (
        f"{results['adapters']} adapters of rank {results['rank']} on {results['modules']} modules "
        f"({results['layers']} blocks of a {results['size']} Llama) into one adapter"
    )
    rows = [
        [
            name,
            f"{run['seconds']:.1f}",
            f"{run['cpu_seconds']:.1f}",
            _gb(run),
            f"{run['bytes_written'] / 1e6:.0f}",
        ]
        for name, run in results["merges"].items()
    ]
    return title, ["method", "s", "CPU s", "peak GB", "written MB"], rows


def checkpoint_tables(results: Mapping[str, Any]) -> list[page.Table]:
    """Return the tables of the second part."""
    processes = [
        [name, spectrum, f"{run['seconds']:.1f}", _gb(run)]
        for spectrum, result in results["spectra"].items()
        for name, run in result["merges"].items()
    ]
    single, spectra = [], []
    for spectrum, result in results["spectra"].items():
        for size, entry in result["matrices"].items():
            spectra.append(
                [spectrum, _size(size), ", ".join(f"{k} {v:.3f}" for k, v in entry["spectrum"].items())]
            )
            for name, one in entry["merges"].items():
                cells = [f"{one['ours']:.3g}", f"{entry['svds']:.3g}", f"{entry['svds'] / one['ours']:.1f}×"]
                errors = [f"{one['error_of_weight']:.1e}", f"{one['error_of_update']:.1e}"]
                single.append([name, spectrum, _size(size), *cells, *errors])
    title = (
        f"3 fine-tunes, {results['layers']} blocks of a {results['size']} Llama "
        f"({results['parameters'] / 1e6:.3g} M parameters), into a checkpoint"
    )
    columns = ["method", "updates", "weight", "submerge s", "3 SVDs s", "ratio", "error of θ", "error of Δ"]
    return [
        (title, ["method", "updates", "s", "peak GB"], processes),
        ("One weight, beside a plain SVD of every update", columns, single),
        ("The updates' singular values", ["updates", "weight", "spectrum"], spectra),
    ]


NOTES = {
    "adapters": (
        "Whole merges: `submerge merge --as adapter --max-memory 2GB` as a process, from the start of Python "
        "on. Peak GB is the largest resident set; in brackets without mapped files (sampled). One "
        "module: median of 9 in one process, {threads} threads. Plain route: the decompositions and products "
        "of whole matrices that the authors' code does for one module, in float32 with torch.linalg and "
        "{threads} threads; each operation was timed once and counts as often as it is done. ≥: a step of "
        "more than 3e12 operations was not done; the SVD of one update stands for a larger one, and nothing "
        "for another step."
    ),
    "specialists": (
        "Whole merges: `submerge merge --as adapter --threads {threads} --max-memory 2GB` as a process, from "
        "the start of Python on. CPU s is the time of all its threads on all cores: where other programs "
        "share the machine, as the load before the start says, it is a better measure than the time on the "
        "clock. Peak GB is the largest resident set; in brackets without mapped files (sampled). Factors are "
        "noise in bfloat16, so that no two adapters share a direction."
    ),
    "checkpoints": (
        "Whole merges: `submerge merge --max-memory 2GB` as a process. One weight: {threads} threads, one "
        "run; the plain side is torch.linalg.svd of every update in float32, and the errors are those "
        "against the method's formula by plain SVDs, relative to ‖θ‖ and to ‖Δ‖."
    ),
}


def show(tables: Sequence[page.Table]) -> list[Table]:
    """Return the tables for the terminal."""
    shown = []
    for title, columns, rows in tables:
        table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name in columns:
            table.add_column(name)
        for row in rows:
            table.add_row(*row)
        shown.append(table)
    return shown


def markdown(part: str, results: Mapping[str, Any], tables: Sequence[page.Table]) -> str:
    """Return a page that says how it was made."""
    title = f"# Methods on singular vectors: {part}"
    note = NOTES[part].format(**results)
    return "\n".join([title, "", *page.made_by(results), *page.table_lines(tables), note, ""])


def plot(tables: Sequence[page.Table], path: Path) -> None:
    """Draw the seconds of whole merges, and of single matrices beside the plain ones."""
    plt = page.pyplot()
    (title, columns, processes), (_, names, single), *_ = tables
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.5 + 0.4 * max(len(processes), len(single))))
    at = columns.index("s")
    labels = [", ".join(row[:at]) for row in processes]
    bars = left.barh(labels, [float(row[at]) for row in processes], color="#1f6feb")
    left.bar_label(bars, padding=3)
    left.set_xlabel("seconds for the whole process")
    left.set_title(title, fontsize=9)
    ours, theirs = names.index("submerge s"), names.index("submerge s") + 1
    for place, (column, colour) in enumerate(((theirs, "#9aa5b1"), (ours, "#1f6feb"))):
        values = [float(row[column].removeprefix("≥ ")) for row in single]
        rows = [number + 0.4 * place - 0.2 for number in range(len(single))]
        bars = right.barh(rows, values, 0.38, color=colour, label=names[column].removesuffix(" s"))
        right.bar_label(bars, [f"{v:.3g}" if v else "" for v in values], padding=3, fontsize=7)
    right.set_yticks(range(len(single)), [", ".join(row[:ours]) for row in single], fontsize=8)
    right.set_xscale("log")
    right.set_xlabel("seconds for one matrix, logarithmic")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.14)
    page.save(figure, path, dpi=150)


def _bound(one: Mapping[str, Any]) -> str:
    return "" if one["plain_is_whole"] else "≥ "


def _gb(run: Mapping[str, Any]) -> str:
    peak, private = run["peak_bytes"] / 1e9, run["private_bytes"]
    return f"{peak:.2f}" + (f" ({private / 1e9:.2f})" if private is not None else "")


def _size(text: str) -> str:
    return text.replace("x", "×")


def _step(step: str, times: int) -> str:
    kind, _, size = step.partition(" ")
    names = {"svd": "SVD", "eigh": "eigh", "gram": "Gram"}
    return (f"{times} " if times > 1 else "") + f"{names[kind]} {_size(size)}"
