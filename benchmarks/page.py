"""What all reports have in common: how they were made, tables, figures, numbers with a spread."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

__all__ = [
    "RESULTS",
    "Table",
    "checks",
    "command",
    "facts",
    "header",
    "made_by",
    "markdown",
    "named",
    "need",
    "out_folder",
    "percent",
    "pyplot",
    "save",
    "scales",
    "spread",
    "table_lines",
    "versions",
    "write",
]

RESULTS = Path(__file__).resolve().parent / "results"
"""Where reports go."""
Table = tuple[str, list[str], list[list[str]]]
"""A heading, the columns, and the cells."""


def command(arguments: Sequence[str], module: str = "benchmarks.replication") -> str:
    """Return the command as another would run it: without the places on this machine."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for place in ("--cache", "--out", "--work"):
        parser.add_argument(place)
    return shlex.join(["python", "-m", module, *parser.parse_known_args(list(arguments))[1]])


def header(module: str) -> dict[str, Any]:
    """Return how, when and where results are made: what stands at the head of every report."""
    return {
        "command": command(sys.argv[1:], module),
        "date": f"{datetime.date.today()}",
        "machine": machine.describe(),
    }


def facts(name: str, suite: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands at the head of a report of the replication bench."""
    return {"name": name, **header("benchmarks.replication"), "suite": dict(suite)}


def need(results: Any, suite: str) -> None:
    """End the program where there are no results."""
    if not results:
        raise SystemExit(f"nothing to report: run `python -m benchmarks.replication merge {suite}` first")


def out_folder(root: Path, options: argparse.Namespace) -> Path:
    """Return where a report goes, made: what the options say, of a fast run the cache, else the results."""
    out: Path = options.out or (root if options.fast else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    return out


def write(out: Path, stem: str, results: Mapping[str, Any], page: str, indent: int = 1) -> None:
    """Write a report as JSON and as Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.json").write_text(json.dumps(results, indent=indent) + "\n")
    (out / f"{stem}.md").write_text(page)


def versions(about: Mapping[str, Any]) -> str:
    """Return the packages of a described machine with their versions."""
    return ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)


def made_by(results: Mapping[str, Any]) -> list[str]:
    """Return the lines that say how and where results were made, and how busy the machine was."""
    where = results["machine"]
    load = f" Load before the start: {results['load_before']:.2f}." if "load_before" in results else ""
    return [
        f"Made by `{results['command']}` on {results['date']}.",
        "",
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gb']} GB memory; {where['system']}, "
        f"Python {where['python']}, {versions(where)}.{load}",
        "",
        *_made_elsewhere(results),
    ]


def _made_elsewhere(results: Mapping[str, Any]) -> list[str]:
    """Return a line on the seeds of earlier reports, where there are such."""
    ours = {"date": results["date"], "machine": results["machine"]}
    earlier = [
        f"{seed} on {how['date']} ({how['machine']['cpu']})"
        for seed, how in results.get("made", {}).items()
        if any(how[key] != value for key, value in ours.items())
    ]
    return [f"Measured earlier, each with models of its own: {'; '.join(earlier)}.", ""] if earlier else []


def table_lines(shown: Sequence[Table]) -> list[str]:
    """Return tables as lines of Markdown."""
    lines = []
    for title, columns, cells in shown:
        lines += [f"## {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in cells]
        lines.append("")
    return lines


def markdown(results: Mapping[str, Any], about: Sequence[str], shown: Sequence[Table], note: str) -> str:
    """Return a page that says how it was made, the lines `about` the suite, tables, and a note."""
    title = f"# Replication: {results['name']}"
    return "\n".join([title, "", *made_by(results), *about, "", *table_lines(shown), note, ""])


def pyplot() -> Any:
    """Return matplotlib's `pyplot`, which draws into files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure: Any, path: Path, dpi: int = 120) -> Path:
    """Write a figure, and return its path."""
    figure.tight_layout()
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)
    return path


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and standard deviation (of the sample; 0 for a single value)."""
    numbers = list(values)
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def named(title: str, results: Sequence[Any], seeds: Mapping[str, Any]) -> str:
    """Return how a row is called, with the number of its seeds where others have more."""
    return title if len(results) == len(seeds) else f"{title} ({len(results)} of {len(seeds)} seeds)"


def scales(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the scales that were chosen; with * one lies at an end of the grid."""
    return ", ".join(f"{one['scale']:g}{'*' * bool(one['at_end'])}" for one in results if "scale" in one)


def checks(title: str, checked: Iterable[tuple[str, bool, str]]) -> Table:
    """Return the table of what must hold: check, whether it holds, and by what numbers."""
    rows = [[text, "yes" if holds else "**no**", numbers] for text, holds, numbers in checked]
    return title, ["check", "holds", "seen"], rows


def percent(values: Iterable[float], digits: int = 1) -> str:
    """Return mean and standard deviation of shares, in %."""
    mean, deviation = spread(values)
    return f"{100 * mean:.{digits}f}" + (f" ± {100 * deviation:.{digits}f}" if deviation else "")
