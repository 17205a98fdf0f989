"""`submerge merge`: a recipe in, a checkpoint out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from submerge.cli._common import (
    document_title,
    load_documents,
    print_json,
    print_warnings,
    resumable,
    settings,
    target_of,
)
from submerge.cli._options import (
    Device,
    Energy,
    Folder,
    Form,
    Json,
    Lenient,
    Memory,
    Nonfinite,
    Out,
    Overwrite,
    Pickle,
    Quiet,
    Rank,
    Recipe,
    Resume,
    Shard,
    Threads,
)
from submerge.cli._progress import progress
from submerge.cli._summary import print_late_warnings, print_notes, print_summary

if TYPE_CHECKING:
    from submerge.engine import MergePlan, MergeReport


def merge(
    recipe: Recipe,
    folder: Folder = None,
    out: Out = None,
    form: Form = None,
    rank: Rank = None,
    energy: Energy = None,
    device: Device = "cpu",
    threads: Threads = None,
    max_memory: Memory = None,
    shard_size: Shard = "5GB",
    resume: Resume = False,
    overwrite: Overwrite = False,
    keep_parts: Annotated[
        bool, typer.Option("--keep-parts", help="Of several documents, keep all results, in OUT.parts.")
    ] = False,
    mergekit: Lenient = False,
    allow_nonfinite: Nonfinite = False,
    allow_pickle: Pickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what is not merged as it is, and why.")
    ] = False,
) -> None:
    """Merge models by a recipe into an ordinary Hugging Face folder, or adapters into an adapter.

    Examples:
    submerge merge recipe.yaml merged/
    submerge merge recipe.yaml merged/ --resume
    submerge merge adapters.yaml merged-lora/ --as adapter --rank 16
    """
    out = target_of(folder, out, "merge")
    documents = load_documents(recipe, form, rank, energy, mergekit=mergekit)
    chosen = settings(
        device=device,
        threads=threads,
        max_memory=max_memory,
        shard_size=shard_size,
        allow_pickle=allow_pickle,
        allow_nonfinite=allow_nonfinite,
    )
    from submerge import engine

    several = len(documents.recipes) > 1
    plans: dict[str, MergePlan] = {}

    def started(name: str, plan: MergePlan | None) -> None:
        """Say what is merged now, and what deserves a look."""
        if several and not quiet:
            state = "merging" if plan else "is there from the interrupted run"
            state = "merged as it is read" if plan and plan.virtual_reads else state
            print(f"{document_title(name)}: {state}", file=sys.stderr)
        if plan is not None:
            plans[name] = plan
            print_notes(plan, verbose=verbose)

    print_warnings(documents.warnings)
    with resumable(out), progress(quiet) as show:
        reports = engine.merge_documents(
            documents,
            out,
            settings=chosen,
            resume=resume,
            overwrite=overwrite,
            keep_parts=keep_parts,
            started=started,
            progress=show,
            calibration_progress=show,
        )
    if json:
        printed = {name: report.to_dict() for name, report in reports.items()}
        print_json({"out": str(out), "documents": printed} if several else next(iter(printed.values())))
        return
    typer.echo(str(out if several else next(iter(reports.values())).out))
    for name, report in reports.items():
        print_late_warnings(report, plans[name].warnings)
    if not quiet:
        _print(reports, several=several)


def _print(reports: Mapping[str, MergeReport], *, several: bool) -> None:
    """Print what each merge did and cost; of `several` documents under its title."""
    for name, report in reports.items():
        if several:
            typer.echo(document_title(name))
        print_summary(report)
