"""`submerge export`: the tasks of a merged folder in a form that others serve."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from submerge.cli._common import print_json
from submerge.cli._options import Json, NewFolder, Overwrite
from submerge.errors import Problem, RequestError, few


def export(
    folder: Annotated[Path, typer.Argument(help="A folder that `submerge merge` made by mass.")],
    out: NewFolder,
    to: Annotated[str, typer.Option(help="What to make of it: adapters.")] = "adapters",
    depth: Annotated[
        float | None, typer.Option(min=0, max=0.999, help="Of one layer that routes, in the place of all.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: an option of the gate, as the recipe has it."),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write each task's subspace as a LoRA adapter, with the router and a script that uses both.

    Example:  submerge export served/ --to adapters -o adapters/
    """
    if to != "adapters":
        raise RequestError(Problem(f"there is no form {to!r}", "--to", "write adapters"))
    from submerge.serving import export_adapters

    exported = export_adapters(folder, out, depth=depth, overwrite=overwrite, **_settings(settings or ()))
    if json:
        print_json(vars(exported))
        return
    typer.echo(str(exported.out))
    layers = "all" if exported.layers == "auto" else exported.layers
    typer.echo(
        f"rank {exported.rank}; layers that route: {layers}; python {exported.out / 'route.py'} answers"
    )
    if exported.left_out:
        typer.echo(f"left out, for an adapter has no place for them: {few(exported.left_out, 5)}")
    if exported.heads:
        typer.echo("heads lie in head.safetensors beside each adapter; route.py puts them on")
    if exported.serve:
        typer.echo(f"serve them with vLLM: {exported.serve}")


def _settings(given: Iterable[str]) -> dict[str, str]:
    """Return options of the gate by name; raise `RequestError` for what is none, or given twice."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name in found:
            what = f"{name} is given twice" if equals else f"{one!r} is no NAME=VALUE"
            raise RequestError(Problem(what, "--set", "write --set score=residual"))
        found[name] = value
    return found
