"""`submerge calibrate`: what unlabelled inputs say of a recipe's merge, or of a served folder's router."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from submerge.cli._calibrate_router import calibrate_router
from submerge.cli._common import check_new_files, load, print_json, print_warnings
from submerge.cli._options import Device, Document, Json, Plot, Quiet
from submerge.cli._progress import progress
from submerge.errors import Problem, RequestError, few, size

if TYPE_CHECKING:
    from submerge.calibrate import Calibration
    from submerge.recipe import Recipe as LoadedRecipe


def calibrate(
    recipe: Annotated[
        Path,
        typer.Argument(readable=False, help="A recipe, or - for one; or a folder that was merged by mass."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; not needed with --steps 0.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="In the place of the recipe's; 0 only measures.")
    ] = None,
    plot: Plot = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Of a folder: TASK=INPUTS for each of its tasks; or INPUTS of all."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=4, help="Of a folder: inputs of a task that are used; 32 by default.")
    ] = None,
    document: Document = None,
    device: Device = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn merge coefficients of adapters from unlabelled inputs, and write them to a file.

    The recipe's method is nsc, and each entry names its data. Any recipe whose models have a weight can name
    the file as its coefficients.

    Of a folder that was merged by mass, let inputs of its tasks help the router; what they show goes into
    the folder. Nobody needs to know whose they are.

    Example:  submerge calibrate nsc.yaml -o coefficients.json --plot calibration.png

    Example:  submerge calibrate served/ --data reviews=reviews.jsonl --data questions=questions.csv

    Example:  submerge calibrate served/ --data requests.jsonl
    """
    if recipe.is_dir():
        of_recipes = {"--out": out, "--steps": steps, "--plot": plot, "--document": document}
        _check_flags("a folder", of_recipes | {"--overwrite": overwrite or None})
        calibrate_router(recipe, data or [], samples, device, json=json, quiet=quiet)
        return
    _check_flags("a recipe", {"--data": data, "--samples": samples})
    _check_files(recipe, out, plot, steps, overwrite=overwrite)
    asked = load(recipe, document)
    _check_inputs(asked, [path for path in (out, plot) if path is not None])
    from submerge.calibrate import calibrate_recipe
    from submerge.device import check_device

    check_device(device)

    try:
        with progress(quiet) as show:
            calibration = calibrate_recipe(asked, steps=steps, device=device, progress=show)
    except (KeyboardInterrupt, SystemExit):
        print("interrupted: nothing was written", file=sys.stderr)
        raise
    if out is not None:
        calibration.save(out)
    if plot is not None:
        from submerge import report

        report.draw_calibration(calibration, plot)
    if json:
        print_json(calibration.to_dict())
        return
    if quiet:
        print_warnings(calibration.warnings)
    else:
        _print(calibration)
    if plot is not None and not quiet:
        typer.echo(f"drawn in {plot}")
    if out is not None:
        typer.echo(str(out) if quiet else f"written to {out}")


def _check_flags(of: str, flags: Mapping[str, object]) -> None:
    """Refuse flags that say nothing of what is calibrated."""
    if given := [flag for flag, value in flags.items() if value is not None]:
        hint = "see submerge calibrate --help"
        raise RequestError(Problem(f"{few(given)} does not go with {of}", "calibrate", hint))


def _check_files(
    recipe: Path, out: Path | None, plot: Path | None, steps: int | None, *, overwrite: bool
) -> None:
    """Refuse files that cannot be written, before a calibration that may take long."""
    if plot is not None:
        from submerge import report

        report.check_picture(plot)
    if out is None and steps != 0:
        hint = "name it: submerge calibrate nsc.yaml -o coefficients.json"
        raise RequestError(Problem("no file to write is named", "calibrate", hint))
    paths = [path for path in (out, plot) if path is not None]
    if len(paths) > len({path.resolve() for path in paths}):
        what = "would hold the coefficients and the picture both"
        raise RequestError(Problem(what, str(plot), "choose another name for one of them"))
    check_new_files(paths, recipe, overwrite=overwrite)


def _check_inputs(asked: LoadedRecipe, paths: Sequence[Path]) -> None:
    """Refuse to write over a recipe's data, or over a file of one of its models."""
    from submerge.recipe import data_spec
    from submerge.store import split_spec

    names = [data_spec(entry.data).path for entry in asked.participants if entry.data is not None]
    for model in (asked.base or "", *(entry.model for entry in asked.participants)):
        names += [part for part in split_spec(model, asked.root) if part]
    problems = [
        Problem(f"would be written over the input {name}", str(path), "choose another name")
        for path in paths
        for name in dict.fromkeys(names)
        if path.exists() and path.resolve().is_relative_to(Path(name).resolve())
    ]
    if problems:
        raise RequestError(problems)


def _print(calibration: Calibration) -> None:
    """Print what calibration did and cost, what it measured, and what the coefficients are."""
    first, last, steps = calibration.loss[0], calibration.loss[-1], len(calibration.loss) - 1
    typer.echo(f"loss {first:.5f} → {last:.5f} in {steps} steps" if steps else f"loss {first:.5f}, no step")
    each = f" · {calibration.seconds_per_step:.3g} s a step" if steps else ""
    peak = size(calibration.peak_memory_bytes)
    typer.echo(f"{calibration.seconds:.1f} s{each} · peak memory {peak}")
    typer.echo("\nratio ω(λ) of each adapter alone, on inputs of its own:")
    typer.echo(str(calibration.curve))
    typer.echo("\nratio ω of each data set for each adapter, in the merged model:")
    typer.echo(str(calibration.matrix))
    typer.echo("\ncoefficients over all modules:")
    for line in _coefficient_lines(calibration):
        typer.echo(line)
    if calibration.unreached:
        count, names = len(calibration.unreached), few(calibration.unreached)
        typer.echo(f"no gradient reaches {count} modules, which keep {calibration.initial:g}: {names}")
    print_warnings(line for line in calibration.warnings if line not in calibration.curve.warnings)


def _coefficient_lines(calibration: Calibration) -> Iterator[str]:
    """Yield a line for each adapter: the mean, the least and the largest of its coefficients."""
    from statistics import fmean

    width = max(len("adapter"), *map(len, calibration.matrix.adapters))
    yield f"{'adapter':<{width}}      mean     least   largest"
    for name in calibration.matrix.adapters:
        own = [of_module[name] for of_module in calibration.coefficients.values() if name in of_module]
        values = [v for c in own for v in (c if isinstance(c, list) else [c])]
        kept = "  not learned" if name in calibration.kept else ""
        yield f"{name:<{width}}  {fmean(values):8.4f}  {min(values):8.4f}  {max(values):8.4f}{kept}"
