"""`submerge extract-lora`: a full fine-tune to an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from submerge.cli._common import print_json, print_warnings, settings
from submerge.cli._options import Json, Memory, NewFolder, Overwrite, Pickle, Threads
from submerge.cli._progress import progress
from submerge.errors import size

if TYPE_CHECKING:
    from submerge.engine import MergeReport

_WORST = 5


def extract_lora(
    model: Annotated[str, typer.Argument(help="The fine-tune: a folder, a file or a Hub id.")],
    base: Annotated[str, typer.Option(help="What it was tuned from.")],
    out: NewFolder,
    rank: Annotated[int | None, typer.Option(min=1, help="The most rank of the adapter.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="The share of each update's squared norm to keep, at most 1.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the factors; float32 by default.")] = None,
    threads: Threads = None,
    max_memory: Memory = None,
    overwrite: Overwrite = False,
    allow_pickle: Pickle = False,
    json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the error of every layer.")] = False,
) -> None:
    """Make a LoRA adapter that turns the base into a fine-tune, as nearly as its rank allows.

    Examples:
    submerge extract-lora tuned/ --base base/ --rank 16 -o adapter/
    submerge extract-lora tuned/ --base base/ --energy 0.9 -o adapter/
    """
    from submerge import engine

    with progress(quiet=False) as show:
        report = engine.extract_lora(
            model,
            out,
            base=base,
            rank=rank,
            energy=energy,
            dtype=dtype,
            settings=settings(
                threads=threads,
                max_memory=max_memory,
                allow_pickle=allow_pickle,
            ),
            overwrite=overwrite,
            progress=show,
        )
    if json:
        print_json(report.to_dict())
        return
    typer.echo(str(report.out))
    _print(report, verbose)


def _print(report: MergeReport, verbose: bool) -> None:
    print_warnings(report.warnings)
    changed = [(name, figures) for name, figures in report.figures.items() if figures.get("rank")]
    by_error = sorted(changed, key=lambda item: -item[1].get("error", 0.0))
    errors = [figures.get("error", 0.0) for _, figures in by_error]
    ranks = [figures["rank"] for _, figures in by_error]
    typer.echo(
        f"{len(by_error)} weights, rank {min(ranks)} to {max(ranks)} · relative error of the updates "
        f"{sum(errors) / len(errors):.3g} on average, {max(errors):.3g} at most · "
        f"{size(report.bytes_written)} in {report.seconds:.1f} s"
    )
    for name, figures in by_error if verbose else by_error[:_WORST]:
        typer.echo(f"  {figures.get('error', 0.0):.4f}  rank {figures['rank']}  {name}")
    if not verbose and len(by_error) > _WORST:
        typer.echo(f"  … and {len(by_error) - _WORST} more, of smaller error (--verbose)")
    if report.serve:
        typer.echo(f"serve it with vLLM: {report.serve}")
