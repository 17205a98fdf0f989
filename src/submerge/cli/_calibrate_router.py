"""`submerge calibrate FOLDER`: inputs of the tasks of a served folder, for its router."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from submerge.cli._common import print_json
from submerge.errors import Problem, RequestError, size

if TYPE_CHECKING:
    from submerge.routing import RouterCalibration, RouterReference

__all__ = ["calibrate_router"]


def calibrate_router(
    folder: Path, data: Sequence[str], samples: int | None, device: str, *, json: bool, quiet: bool
) -> None:
    """Calibrate a folder's router, and print what it found."""
    sources = data[0] if len(data) == 1 and "=" not in data[0] else _sources(data)
    import submerge
    from submerge.device import check_device

    check_device(device)
    given = {} if samples is None else {"samples": samples}
    calibration = submerge.calibrate_router(folder, sources, device=device, **given)
    if json:
        print_json(calibration.to_dict())
    elif not quiet:
        _print(calibration)
        typer.echo(f"written to {folder}")
    else:
        typer.echo(str(folder))


def _sources(data: Sequence[str]) -> dict[str, str]:
    """Return the inputs of each task."""
    sources: dict[str, str] = {}
    for pair in data:
        task, separator, path = pair.partition("=")
        if not separator or not task or not path:
            hint = "write --data reviews=reviews.jsonl, once for each task, or one file of all tasks"
            raise RequestError(Problem(f"{pair!r} is not TASK=INPUTS", "--data", hint))
        if task in sources:
            raise RequestError(Problem(f"{task} has inputs twice", "--data", "name one file for each task"))
        sources[task] = path
    return sources


def _print(calibration: RouterCalibration | RouterReference) -> None:
    from submerge.routing import RouterReference

    if isinstance(calibration, RouterReference):
        typer.echo(f"{calibration.count} inputs, {size(calibration.nbytes)} to hold; found among them:")
        for name, share in calibration.found.items():
            typer.echo(f"  {share:6.1%}  {name}")
        return
    figures = calibration.to_dict()
    total = sum(calibration.counts.values())
    typer.echo(f"{total} inputs of {len(calibration.counts)} tasks, {size(calibration.nbytes)} to hold")
    typer.echo(f"{figures['right']:.1%} of them get their own task, as if they had not been seen")
    typer.echo(f"{figures['right_before']:.1%} do without the calibration")
