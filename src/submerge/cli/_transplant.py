"""`submerge transplant`: another model's tokenizer for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from submerge.cli._common import print_json, print_warnings, resumable, settings
from submerge.cli._options import Json, Memory, NewFolder, Overwrite, Pickle, Resume, Shard, Threads
from submerge.cli._progress import progress
from submerge.errors import size

if TYPE_CHECKING:
    from submerge.engine import MergePlan, TransplantReport

_METHODS = {"omp": "OMP", "subword": "their pieces", "mean": "the mean", "zero": "zeros"}
"""How the rows of new tokens are said to be approximated."""


def transplant(
    model: Annotated[str, typer.Argument(help="The model: a folder or a Hub id.")],
    donor: Annotated[str, typer.Argument(help="The model whose tokenizer is taken.")],
    out: NewFolder,
    method: Annotated[
        str, typer.Option(help="For tokens that the model lacks: omp, subword, mean or zero.")
    ] = "omp",
    k: Annotated[
        int | None, typer.Option("-k", "--k", help="Shared tokens in a combination of omp: 64 by default.")
    ] = None,
    pad_to_multiple_of: Annotated[
        int | None, typer.Option(help="Of what number the rows of the tables are a multiple.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="auto for the model's, a name, or Jinja; the donor's by default.")
    ] = None,
    threads: Threads = None,
    max_memory: Memory = None,
    shard_size: Shard = "5GB",
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    allow_pickle: Pickle = False,
    json: Json = False,
) -> None:
    """Give a model the tokenizer of another, without training.

    Tokens that both have keep the model's rows; those of the others are approximated.

    Examples:
    submerge transplant model/ donor/ -o out/
    submerge transplant model/ donor/ --method subword -o out/
    """
    from submerge import engine

    asked: dict[str, Any] = {
        "method": method,
        "k": k,
        "pad_to_multiple_of": pad_to_multiple_of,
        "chat_template": chat_template,
        "settings": settings(
            threads=threads,
            max_memory=max_memory,
            shard_size=shard_size,
            allow_pickle=allow_pickle,
        ),
    }
    if dry_run:
        _print_plan(engine.plan_transplant(model, donor, **asked), json=json)
        return
    with resumable(out), progress(quiet=False) as show:
        report = engine.transplant(
            model, donor, out, **asked, overwrite=overwrite, resume=resume, progress=show
        )
    if json:
        print_json(report.to_dict())
        return
    typer.echo(str(report.merge.out))
    _print(report)


def _print_plan(plan: MergePlan, *, json: bool) -> None:
    from submerge import engine

    if json:
        print_json(engine.describe(plan))
        return
    for line in plan.vocabulary:
        typer.echo(line)
    for warning in plan.warnings:
        typer.echo(f"warning  {warning}")
    typer.echo(f"writes {size(plan.bytes_written)}, with {size(plan.budget.peak)} of memory at most")


def _print(report: TransplantReport) -> None:
    print_warnings(report.merge.warnings)
    total = sum(report.tokens.values())
    shared = report.tokens["shared"]
    typer.echo(f"{total} tokens, {shared} of them shared ({shared / total:.1%})")
    for method, count in report.tokens.items():
        if method in _METHODS:
            typer.echo(f"  {count} approximated by {_METHODS[method]}")
    for name, residual in report.residuals.items():
        typer.echo(f"  relative residual of those by OMP {residual:.3f} on average, for {name}")
    typer.echo(f"  {report.unused} tokens of the model have no use any more")
    typer.echo(f"{size(report.merge.bytes_written)} in {report.merge.seconds:.1f} s")
