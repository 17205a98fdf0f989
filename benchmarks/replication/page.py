"""What all reports of the bench have in common: how they were made, tables, figures with a spread."""

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

from benchmarks.speed import machine

__all__ = [
    "Rows",
    "command",
    "facts",
    "markdown",
    "out_folder",
    "percent",
    "spread",
    "versions",
    "write",
]

HERE = Path(__file__).resolve().parent.parent
Rows = tuple[str, list[str], list[list[str]]]
"""A heading, the columns, and the cells."""


def command(arguments: Sequence[str], module: str = "benchmarks.replication") -> str:
    """Return the command as another would run it: without the places on this machine."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cache")
    parser.add_argument("--out")
    return shlex.join(["python", "-m", module, *parser.parse_known_args(list(arguments))[1]])


def facts(name: str, suite: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands at the head of a report."""
    return {
        "name": name,
        "command": command(sys.argv[1:]),
        "date": f"{datetime.date.today()}",
        "machine": machine.describe(),
        "suite": dict(suite),
    }


def out_folder(root: Path, options: argparse.Namespace) -> Path:
    """Return where a report goes, made: what the options say, of a fast run the cache, else the results."""
    out: Path = options.out or (root if options.fast else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    return out


def write(out: Path, stem: str, results: Mapping[str, Any], page: str) -> None:
    """Write a report as JSON and as Markdown."""
    (out / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{stem}.md").write_text(page)


def versions(about: Mapping[str, Any]) -> str:
    """Return the packages of a described machine with their versions."""
    return ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)


def markdown(results: Mapping[str, Any], about: Sequence[str], shown: Sequence[Rows], note: str) -> str:
    """Return a page that says how it was made, the lines `about` the suite, tables, and a note."""
    where = results["machine"]
    lines = [
        f"# Replication: {results['name']}",
        "",
        f"Made by `{results['command']}` on {results['date']}.",
        "",
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gb']} GB memory; {where['system']}, "
        f"Python {where['python']}, {versions(where)}.",
        "",
        *about,
        "",
    ]
    for title, columns, cells in shown:
        lines += [f"## {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in cells]
        lines.append("")
    return "\n".join([*lines, note, ""])


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and standard deviation (of the sample; 0 for a single value)."""
    some = list(values)
    return statistics.fmean(some), statistics.stdev(some) if len(some) > 1 else 0.0


def percent(values: Iterable[float], digits: int = 1) -> str:
    """Return mean and standard deviation of shares, in %."""
    mean, deviation = spread(values)
    return f"{100 * mean:.{digits}f}" + (f" ± {100 * deviation:.{digits}f}" if deviation else "")
