"""`submerge export`: the tasks of a merged folder in a form that others serve."""

from __future__ import annotations

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
    depth: Annotated[float, typer.Option(min=0, max=0.999, help="Of the layer that routes.")] = 0.5,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write each task's subspace as a LoRA adapter, with a small router and an example that uses it.

    Example:  submerge export served/ --to adapters -o adapters/
    """
    if to != "adapters":
        raise RequestError(Problem(f"there is no form {to!r}", "--to", "write adapters"))
    from submerge.serving import export_adapters

    exported = export_adapters(folder, out, depth=depth, overwrite=overwrite)
    if json:
        print_json(vars(exported))
        return
    typer.echo(str(exported.out))
    typer.echo(f"rank {exported.rank}; layer {exported.layer} routes: python {exported.out / 'route.py'}")
    if exported.left_out:
        typer.echo(f"left out, for an adapter has no place for them: {few(exported.left_out, 5)}")
    if exported.heads:
        typer.echo("heads lie in head.safetensors beside each adapter; route.py puts them on")
    if exported.serve:
        typer.echo(f"serve them with vLLM: {exported.serve}")
