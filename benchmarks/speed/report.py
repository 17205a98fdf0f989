"""Shows the benchmark's results: tables in the terminal, and a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.page import made_by
from benchmarks.speed.bench import Result, median
from benchmarks.speed.rows import BARRED, BARRED_SIZE, Bar, Row, rows

__all__ = ["markdown", "part_title", "tables", "title"]

TIMES = (
    "method",
    "models read",
    "mergekit s",
    "submerge s",
    "ratio",
    "inside ÷ floor",
    "mergekit peak GB",
    "submerge peak GB",
)
DETAILS = (
    "method",
    "passes",
    "inside s",
    "÷ floor of its passes",
    "read ×",
    "CPU s",
    "CPU ns an element",
    "private GB",
    "same bytes",
    "as mergekit",
)
NOTES = """\
Whole processes, one after another; medians. `inside`: what Submerge reports, without the start of
Python. Floor: a program that only reads the inputs, writes the output's bytes and waits for the disk;
`inside ÷ floor` is over that of reading them once, `÷ floor of its passes` over that of reading them
as often as the method goes over them. `read ×`: how often inputs were read. CPU: user and system time
of all processes, the start included; ns for each element of the output. Peak GB is the largest
resident set, mapped pages of files included; `private GB` is Submerge's without them (sampled). `same
bytes`: of all runs, and of how many. `as mergekit`: the share of sampled values (one of 4096) that
are equal up to two steps of bfloat16, in float32 up to 1e-5 of them; not of methods whose masks are
drawn. In 16 bits mergekit computes in 16 bits, and many updates have one magnitude, of which each
tool takes others. Behind a number stands what it is to be, and whether that is met."""


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table for each part, for the terminal."""
    for part in results["parts"].values():
        shown = Table(title=part_title(part), box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name in TIMES:
            shown.add_column(name.replace(" ", "\n", 1), justify="left" if name == "method" else "right")
        for row in rows(results, part):
            shown.add_row(*_times(row, {}))
        yield shown


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown page that says how they were made."""
    lines = [f"# {title(results)}", "", *made_by(results)]
    for key, part in results["parts"].items():
        shown = list(rows(results, part))
        barred = key == BARRED and results["size"] == BARRED_SIZE
        times = [_times(row, row.bars() if barred else {}) for row in shown]
        lines += [f"## {part_title(part)}", "", *_lines(TIMES, times), *_floors(part)]
        lines += [*_lines(DETAILS, [_details(row) for row in shown]), *_origin(part)]
    return "\n".join([*lines, NOTES, ""])


def title(results: Mapping[str, Any]) -> str:
    """Return what was merged."""
    parameters = results["parameters"] / 1e6
    size = f"{parameters / 1e3:.1f} B" if parameters >= 1e3 else f"{parameters:.2g} M"
    return f"Merging models of {size} parameters, {results['threads']} threads, warm page cache"


def part_title(part: Mapping[str, Any]) -> str:
    """Return what is special to a part."""
    return f"{part['models']} models, {part['dtype']}"


def _times(row: Row, bars: Mapping[str, Bar]) -> list[str]:
    return [
        row.method,
        f"{row.inputs}",
        _show(row.theirs, ".1f"),
        _show(row.ours, ".2f"),
        _show(row.ratio, ".1f", bars.get("ratio"), "×"),
        _show(row.over_floor, ".2f", bars.get("over_floor")),
        _show(row.their_peak_gb, ".2f"),
        _show(row.peak_gb, ".2f", bars.get("peak_gb")),
    ]


def _details(row: Row) -> list[str]:
    return [
        row.method,
        f"{row.passes}",
        _show(row.inside, ".2f"),
        _show(row.over_own_floor, ".2f"),
        _show(row.reads, ".2f"),
        _show(row.cpu, ".1f"),
        _show(row.cpu_ns, ".1f"),
        _show(row.private_gb, ".2f"),
        _same_bytes(row),
        "drawn" if row.draws else _show(row.agreement, ".2%", row.agrees),
    ]


def _same_bytes(row: Row) -> str:
    if row.compared < 2:
        return "–"
    return f"yes, {row.compared}" if row.digests == 1 else f"**no**: {row.digests} of {row.compared}"


def _show(value: float | None, spec: str, bar: Bar | None = None, unit: str = "") -> str:
    """Return a number, with what it is to be and whether it is."""
    if value is None:
        return "–"
    verdict = "" if bar is None else f"; {bar} {'met' if bar.met(value) else '**missed**'}"
    return f"{value:{spec}}{unit}{verdict}"


def _lines(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    head = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return [*head, *("| " + " | ".join(row) + " |" for row in cells), ""]


def _floors(part: Mapping[str, Any]) -> list[str]:
    if not part["floors"]:
        return []
    cells = []
    for inputs, floors in sorted(part["floors"].items(), key=lambda item: int(item[0])):
        seconds = (median(floors.get(passes), "seconds_inside") for passes in ("1", "2"))
        cells.append([inputs, *(_show(value, ".2f") for value in seconds)])
    return _lines(("models read", "floor of one pass s", "of two passes s"), cells)


def _origin(part: Mapping[str, Any]) -> list[str]:
    """Return by which commands a part was measured, when, and in how many runs."""
    by_tool: dict[str, list[Result]] = {
        "floors": [f for floors in part["floors"].values() for f in floors.values()]
    }
    for tool in ("submerge", "mergekit"):
        by_tool[tool] = [row[tool] for row in part["methods"].values() if tool in row]
    told = []
    for tool, measured in by_tool.items():
        if measured:
            counts = sorted({len(result["runs"]) for result in measured})
            dates = sorted(result["measured"] for result in measured)
            runs = " or ".join(map(str, counts))
            told.append(f"{tool} {dates[0]} to {dates[-1]}, runs of each: {runs}")
    commands = ", ".join(f"`{command}`" for command in part["commands"])
    return [f"By {commands}. Measured (UTC): {'; '.join(told)}.", ""]
