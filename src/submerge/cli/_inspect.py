"""`submerge inspect`: how the updates of a recipe's models overlap."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from submerge.cli._common import check_picture, load, print_json, print_warnings, settings
from submerge.cli._options import Document, Json, Memory, OverwritePicture, Pickle, Plot, Recipe, Threads
from submerge.cli._progress import progress

if TYPE_CHECKING:
    from rich.console import Console

    from submerge.engine import Inspection
    from submerge.report import OverlapSummary

MOST_PAIRS = 12
"""Pairs of models that have rows of their own; of more, those that overlap most."""


def inspect(
    recipe: Recipe,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="The most singular directions of an update; default: a LoRA's all, else 32."
        ),
    ] = None,
    plot: Plot = None,
    document: Document = None,
    threads: Threads = None,
    max_memory: Memory = None,
    overwrite: OverwritePicture = False,
    allow_pickle: Pickle = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Say how the updates of a recipe's models overlap: angles between them, and what they share.

    Any recipe will do whose models have a base, or are adapters; it is not merged.

    Example:  submerge inspect recipe.yaml --plot overlap.png
    """
    check_picture(plot, recipe, overwrite=overwrite)
    asked = load(recipe, document)
    chosen = settings(threads=threads, max_memory=max_memory, allow_pickle=allow_pickle)
    from submerge import engine

    with progress(quiet) as show:
        inspection = engine.inspect_updates(asked, rank=rank, settings=chosen, progress=show)
    if plot is not None:
        from submerge import report

        report.draw_inspection(inspection, plot)
    if json:
        print_json(inspection.to_dict())
        return
    print_warnings(inspection.warnings)
    _print(inspection)
    if plot is not None:
        typer.echo(f"drawn in {plot}")


def _print(inspection: Inspection) -> None:
    """Print means by model, by pair, by kind of module and by layer."""
    from rich.console import Console

    from submerge import report

    width = None if sys.stdout.isatty() else 200  # lines for a pipe are not folded
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    models, matrices = len(inspection.models), len(inspection.matrices)
    untouched = f", {len(inspection.untouched)} more that none changes" if inspection.untouched else ""
    console.print(f"{models} models change {matrices} weight matrices{untouched}; all figures are means\n")
    _print_table(console, "model", report.by_model(inspection))
    pairs = report.by_pair(inspection)
    pairs.sort(key=lambda pair: -((pair.columns or 0) + (pair.rows or 0)))
    _print_table(console, "pair", pairs[:MOST_PAIRS])
    if len(pairs) > MOST_PAIRS:
        console.print(f"and {len(pairs) - MOST_PAIRS} pairs that overlap less\n")
    _print_table(console, "module", report.by_kind(inspection))
    _print_table(console, "layer", report.by_layer(inspection))
    console.print(
        "cos of columns, of rows: mean cosine of the principal angles between column and between row spaces\n"
        "kept: of ‖Δ‖², by SSAM with half of the largest rank, with it, and with the sum of the ranks"
    )


def _print_table(console: Console, what: str, summaries: Sequence[OverlapSummary]) -> None:
    from rich.table import Table

    table = Table(what, box=None, pad_edge=False)
    for name in ("matrices", "cos of columns", "of rows", "cos of Δ", "‖Δ‖", "stable rank"):
        table.add_column(name, justify="right")
    for name in ("kept: half", "max", "full"):
        table.add_column(name, justify="right")
    for one in summaries:
        table.add_row(
            one.label,
            str(one.count),
            *(_number(value, "z.3f") for value in (one.columns, one.rows, one.cosine)),
            _number(one.norm, ".3g"),
            _number(one.stable_rank, ".1f"),
            *(_number(value, ".3f") for value in (one.half, one.max, one.full)),
        )
    console.print(table)
    console.print()


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
