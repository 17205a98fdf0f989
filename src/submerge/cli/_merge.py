"""`submerge merge`: a recipe in, a checkpoint out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from submerge.cli._common import load_documents, print_json, settings, size
from submerge.cli._progress import progress
from submerge.errors import Problem, RequestError

if TYPE_CHECKING:
    from submerge.engine import MergePlan, MergeReport

Recipe = Annotated[
    Path, typer.Argument(readable=False, help="The recipe, a YAML file, or - (mergekit's are understood).")
]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read PyTorch .bin weights (weights only).")]
Memory = Annotated[
    str | None,
    typer.Option(help="The most memory that the process may hold; a quarter of the machine's by default."),
]
Shard = Annotated[str, typer.Option(help="The most data in one output file.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Workers; one a core by default.")]
Device = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda or cuda:N.", autocompletion=lambda: ["cpu", "cuda"])
]
Form = Annotated[
    str | None,
    typer.Option(
        "--as",
        help="What to write: checkpoint or adapter.",
        autocompletion=lambda: ["checkpoint", "adapter"],
    ),
]
Rank = Annotated[int | None, typer.Option(min=1, help="The most rank of an adapter that is written.")]
Energy = Annotated[
    float | None, typer.Option(help="Of each update, the share of its squared norm that an adapter keeps.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Lenient = Annotated[
    bool, typer.Option("--mergekit", help="Ignore what mergekit ignores, such as unknown keys, and name it.")
]

Folder = Annotated[
    Path | None, typer.Argument(readable=False, help="The folder to make; --out names it, too.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", readable=False, help="The folder to make.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]
Nonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Finish even if NaN or Inf is met.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary: the path only.")]
Document = Annotated[
    str | None, typer.Option(help="Of several documents, the name of the one; by default the result's.")
]


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
    out = target_of(folder, out)
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
            print(f"document {name or 'of the result'}: {state}", file=sys.stderr)
        if plan is not None:
            plans[name] = plan
            print_notes(plan, quiet=quiet, verbose=verbose)

    for line in documents.warnings if not quiet else ():
        print(f"warning: {line}", file=sys.stderr)
    try:
        with progress(quiet) as show:
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
    except (KeyboardInterrupt, SystemExit):
        hint = "the same command with --resume goes on from here"
        print(f"interrupted: {out} is untouched; {hint}", file=sys.stderr)
        raise
    if json:
        printed = {name: report.to_dict() for name, report in reports.items()}
        print_json({"out": str(out), "documents": printed} if several else next(iter(printed.values())))
        return
    typer.echo(str(out if several else next(iter(reports.values())).out))
    for name, report in reports.items() if not quiet else ():
        if several:
            typer.echo(f"document {name or 'of the result'}")
        print_summary(report, plans[name].warnings)


def print_notes(plan: MergePlan, *, quiet: bool, verbose: bool) -> None:
    """Print on standard error what deserves a look, and if asked for, what is not merged as it is."""
    for warning in plan.warnings if not quiet else ():
        print(f"warning: {warning}", file=sys.stderr)
    if verbose:
        _print_reasons(plan)


def _print_reasons(plan: MergePlan) -> None:
    """Print how vocabularies differ, and why tensors are not merged as they are."""
    for line in plan.vocabulary:
        print(f"vocabulary: {line}", file=sys.stderr)
    for tensor in plan.tensors:
        if tensor.why:
            print(f"{tensor.name}: {_TREATED[tensor.treatment]}: {tensor.why}", file=sys.stderr)


def target_of(folder: Path | None, out: Path | None) -> Path:
    """Return the folder to make, as the argument or the option names it."""
    if folder is not None and out is not None and folder != out:
        raise RequestError(Problem(f"two folders are named, {folder} and {out}", "merge", "name one"))
    target = folder or out
    if target is None:
        hint = "write it after the recipe: submerge merge recipe.yaml merged/"
        raise RequestError(Problem("no folder to make is named", "merge", hint))
    return target


def print_summary(report: MergeReport, printed: Sequence[str]) -> None:
    """Print what a merge did and cost, without the warnings that were printed before it began."""
    tensors = ", ".join(f"{count} {_TREATED[kind]}" for kind, count in report.tensors.items())
    lines = [
        f"{report.seconds:.1f} s · read {size(report.bytes_read)}, wrote {size(report.bytes_written)} · "
        f"{size(report.rate)}/s",
        f"{report.workers} workers: {report.reading:.0%} of their time reading, {report.writing:.0%} "
        f"writing · peak memory {size(report.peak_memory_bytes)}",
        f"tensors: {tensors}",
    ]
    if report.calibration is not None:
        first, last = report.calibration["loss"]
        steps, seconds = report.calibration["steps"], report.calibration["seconds"]
        lines.append(f"weights learned in {steps} steps, {seconds:.1f} s: loss {first:.5f} → {last:.5f}")
    lines += _figures(report)
    lines += [f"warning: {line}" for line in report.warnings if line not in printed]
    if report.resumed:
        lines.append(f"{report.resumed} ranges taken over from the interrupted run")
    for name, models in list(report.differs.items())[:10]:
        lines.append(f"note: {name} is kept from the base; it is not the same in {', '.join(models)}")
    for name, counts in list(report.nonfinite.items())[:10]:
        places = ", ".join(f"{count} in {where}" for where, count in counts.items())
        lines.append(f"warning: NaN or Inf in {name}: {places}")
    if report.serve:
        lines.append(f"serve it with vLLM: {report.serve}")
    for line in lines:
        typer.echo(line)


def _figures(report: MergeReport) -> list[str]:
    """Return one line for each share that the method or the adapter's rank keeps of the updates."""
    lines = []
    for key, what in (("kept", "kept by the shared subspaces"), ("kept_by_rank", "kept by the rank")):
        shares = [(float(figures[key]), name) for name, figures in report.figures.items() if key in figures]
        if shares:
            worst, where = min(shares)
            mean = sum(share for share, _ in shares) / len(shares)
            lines.append(
                f"{what}: {mean:.1%} of the updates' energy on average, least {worst:.1%} in {where}"
            )
    return lines


_TREATED = {
    "merge": "merged",
    "mixture": "of experts and gates",
    "mix": "projectors, mixed for each image",
    "keep": "kept (integer or boolean)",
    "base": "taken from the base",
    "drop": "left to the base",
}
