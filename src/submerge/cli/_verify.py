"""`submerge verify`: is a merged folder what the merge wrote?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from submerge.cli._common import print_json
from submerge.cli._options import Json
from submerge.errors import counted, size


def verify(
    out: Annotated[Path, typer.Argument(help="A folder that `submerge merge` made.")],
    base: Annotated[
        str | None, typer.Option(help="The base to compare names with; the recipe's by default.")
    ] = None,
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load it with transformers too.")] = True,
    json: Json = False,
) -> None:
    """Check a merged folder: names, shapes, digests, NaN and Inf, and that it loads."""
    from submerge import engine

    report = engine.verify(out, base=base, load=load)
    if json:
        print_json(report.to_dict())
    else:
        for problem in report.problems:
            typer.echo(f"wrong    {problem}")
        for line in report.skipped:
            typer.echo(f"note     {line}")
        if report.loaded:
            typer.echo(f"loads    as {report.loaded}")
        count = len(report.problems)
        verdict = "sound" if report.sound else f"NOT sound: {counted(count, 'problem')}"
        typer.echo(f"{verdict}: {report.tensors} tensors, {size(report.bytes)} in {out}")
    if not report.sound:
        raise typer.Exit(1)
