"""`submerge route`: which tasks a merged folder finds for the inputs of a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from submerge.cli._common import check_picture, print_json
from submerge.cli._options import Json, OverwritePicture, Plot

if TYPE_CHECKING:
    from submerge.report import Survey

_WIDTH = 60


def route(
    out: Annotated[Path, typer.Argument(help="A folder that `submerge merge` made by mass.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Inputs: .jsonl, .csv, .txt and others, or a folder of images; with task if known."
        ),
    ],
    plot: Plot = None,
    overwrite: OverwritePicture = False,
    json: Json = False,
) -> None:
    """Say which task each input is given, and how that agrees with the tasks that the file names.

    Example:  submerge route served/ --data inputs.jsonl --plot routing.png
    """
    check_picture(plot, data, overwrite=overwrite)
    from submerge import report

    survey = report.survey(out, data)
    if plot is not None:
        report.draw(survey, plot)
    if json:
        print_json(survey.to_dict())
        return
    _print(survey)
    if plot is not None:
        typer.echo(f"drawn in {plot}")


def _print(survey: Survey) -> None:
    width = max(map(len, survey.names))
    for item, task, shares in zip(survey.items, survey.tasks, survey.coefficients, strict=True):
        mark = "" if not item.task else "  " if item.task == task else "✗ "
        typer.echo(f"{mark}{task:<{width}}  {float(shares.max()):.2f}  {item.shown[:_WIDTH]}")
    if not survey.labelled:
        counts = Counter(survey.tasks)
        typer.echo("chosen: " + ", ".join(f"{name} {counts[name]}" for name in survey.names))
        return
    typer.echo(f"\n{'':<{width}}  " + "  ".join(f"{name:>{max(5, len(name))}}" for name in survey.names))
    for row, line in survey.confusion.items():
        cells = "  ".join(f"{line[name]:>{max(5, len(name))}}" for name in survey.names)
        typer.echo(f"{row:<{width}}  {cells}")
    typer.echo(f"\n{survey.accuracy:.1%} of {len(survey.items)} inputs got their own task")
