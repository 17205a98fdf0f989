"""The page of the benchmark of recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.page import Table, made_by, table_lines
from benchmarks.speed.bench import median
from benchmarks.speed.rows import Bar

__all__ = ["markdown"]

RATIO, PEAK_GB, AGREEMENT = Bar(3, least=True), Bar(1), Bar(0.95, least=True)
COLUMNS = [
    "recipe",
    "models GB",
    "mergekit s",
    "submerge s",
    "ratio",
    "mergekit CPU s",
    "submerge CPU s",
    "mergekit peak GB",
    "submerge peak GB",
    "as mergekit",
]
NOTES = """\
Whole processes, ours and mergekit's in turn; medians. The inputs lie in the page cache. CPU: user and system
time of all processes. Peak GB is the largest resident set, mapped pages of files included. `as mergekit`: the
share of sampled values (one of 4096) that are equal up to two steps of bfloat16, rows of tables by their
tokens, and each expert by itself. mergekit computes in bfloat16 where its models are: it rounds on the way,
and TIES keeps others of the entries of one magnitude. Behind a number stands what it is to be, and whether
that is met."""


def markdown(results: Mapping[str, Any]) -> str:
    """Return the page, with what numbers are to be."""
    rows = [_row(case) for case in results["cases"].values()]
    table: Table = (f"{results['threads']} threads, {results['repeat']} runs of each", COLUMNS, rows)
    lines = ["# Whole recipes beside mergekit", "", *made_by(results), *table_lines([table])]
    if missing := results["missing"]:
        lines += [f"Not measured, for this version has no such command: {', '.join(missing)}.", ""]
    return "\n".join([*lines, NOTES, ""])


def _row(case: Mapping[str, Any]) -> list[str]:
    ours, theirs = case["submerge"], case["mergekit"]
    seconds = [median(theirs), median(ours)]
    peaks = [max(run["peak_bytes"] for run in tool["runs"]) / 1e9 for tool in (theirs, ours)]
    cpu = [median(tool, "cpu_seconds") for tool in (theirs, ours)]
    return [
        f"{case['title']} (`{case['program']}`)",
        f"{case['inputs_bytes'] / 1e9:.2f}",
        *(f"{value:.1f}" for value in seconds),
        _held((seconds[0] or 0) / (seconds[1] or 1), ".1f", RATIO, "×"),
        *(f"{value:.1f}" for value in cpu),
        f"{peaks[0]:.2f}",
        _held(peaks[1], ".2f", PEAK_GB),
        _held(case["agreement"], ".2%", AGREEMENT),
    ]


def _held(value: float, spec: str, bar: Bar, unit: str = "") -> str:
    return f"{value:{spec}}{unit}; {bar} {'met' if bar.met(value) else '**missed**'}"
