"""`submerge moe`: a mixture of experts from dense models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from submerge.cli._common import load_mixture, print_json, resumable, settings, target_of
from submerge.cli._mergekit import MergekitAware
from submerge.cli._options import (
    Device,
    Folder,
    Json,
    Lenient,
    Memory,
    Nonfinite,
    Out,
    Overwrite,
    Pickle,
    Quiet,
    Resume,
    Shard,
    Threads,
)
from submerge.cli._plan import print_plan_of
from submerge.cli._progress import progress
from submerge.cli._summary import print_late_warnings, print_notes, print_summary
from submerge.errors import Problem, RequestError

Recipe = Annotated[
    Path, typer.Argument(readable=False, help="The recipe, a YAML file, or - (mergekit-moe's form).")
]
TAKEN = "--i-understand-this-is-not-useful-without-training"
REFUSED = ("--load-in-4bit", "--load-in-8bit")


class MergekitMoeAware(MergekitAware):
    """A command that understands the flags of mergekit-moe besides its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; experts that are all the same are warned of without a flag, too."""
        if asked := set(REFUSED).intersection(args):
            what = "prompts run through the base in its own number format"
            hint = "leave the flag out; 'gate_mode: cheap_embed' runs no model"
            raise RequestError(Problem(what, ", ".join(sorted(asked)), hint))
        return super().parse_args(ctx, [argument for argument in args if argument != TAKEN])


def moe(
    recipe: Recipe,
    folder: Folder = None,
    out: Out = None,
    plan: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Say what would be made, and stop.")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
    max_memory: Memory = None,
    shard_size: Shard = "5GB",
    resume: Resume = False,
    overwrite: Overwrite = False,
    mergekit: Lenient = False,
    allow_nonfinite: Nonfinite = False,
    allow_pickle: Pickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say of each tensor where it comes from.")
    ] = False,
) -> None:
    """Make a mixture of experts of dense models: each model's feed-forward blocks are an expert.

    Examples:
    submerge moe recipe.yaml --plan
    submerge moe recipe.yaml mixture/
    """
    out = None if plan else target_of(folder, out, "moe")
    asked = load_mixture(recipe, mergekit=mergekit)
    chosen = settings(
        device=device,
        threads=threads,
        max_memory=max_memory,
        shard_size=shard_size,
        allow_pickle=allow_pickle,
        allow_nonfinite=allow_nonfinite,
    )
    from submerge import engine

    planned = engine.plan_mixture(asked, chosen)
    if out is None:
        print_plan_of(planned, json=json)
        return
    print_notes(planned, verbose=verbose)
    with resumable(out), progress(quiet) as show:
        report = engine.moe(
            planned, out, resume=resume, overwrite=overwrite, progress=show, prompt_progress=show
        )
    if json:
        print_json(report.to_dict())
        return
    typer.echo(str(report.out))
    print_late_warnings(report, planned.warnings)
    if not quiet:
        print_summary(report)
