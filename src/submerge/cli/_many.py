"""`submerge many …`: a state of tasks that grows, and what is exported from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from submerge.cli._common import print_json, print_warnings, settings, size
from submerge.cli._options import Device, Json, Memory, NewFolder, Overwrite, Rank, Shard, Threads
from submerge.cli._progress import BatchProgress, progress
from submerge.errors import Problem, RequestError

if TYPE_CHECKING:
    from submerge.continual import TaskRecord

__all__ = ["many"]

many = typer.Typer(
    help="Add tasks to a model one at a time, remove them, and export their merge.", no_args_is_help=True
)

LPM = ("preset", "scale", "ridge", "energy", "forget", "offdiag", "normalize", "missing")
PASSES = ("samples", "batch_size", "max_length", "device")
GATE = ("projectors", "score", "temperature", "top", "key", "centred")
"""Arguments that are handed on by their names."""

State = Annotated[Path, typer.Argument(readable=False, help="The state, a folder that `many init` made.")]
Task = Annotated[str, typer.Option("--task", "-t", help="The name of the task.")]
Base = Annotated[str | None, typer.Option(help="Where the base is now, if it was moved.")]
Samples = Annotated[
    int | None, typer.Option(min=1, help="The most inputs that run, evenly spaced; all by default.")
]
Batch = Annotated[int, typer.Option(min=1, help="Inputs that run at a time.")]
Length = Annotated[int, typer.Option(min=1, help="The most tokens of a text.")]
Preset = Annotated[str | None, typer.Option(help="Options of the merge to begin with: default or paper.")]
Scale = Annotated[float | None, typer.Option(help="λ, a factor on the merged update: best left at 1.")]
Ridge = Annotated[float | None, typer.Option(min=0, help="ε of each task's ridge ε tr(C)/n.")]
Energy = Annotated[float | None, typer.Option(help="The share of each C's trace that is kept, at most 1.")]
Forget = Annotated[float | None, typer.Option(help="γ, the factor on all earlier tasks with each new one.")]
Offdiag = Annotated[float | None, typer.Option(help="A factor on what is beside the diagonal of each C.")]
Normalize = Annotated[
    str | None, typer.Option(help="per_token, so that long texts do not outweigh short ones; or sum.")
]
Weight = Annotated[
    list[str] | None,
    typer.Option(metavar="TASK=NUMBER", help="A factor on a task's moments, 1 by default; once for each."),
]
Missing = Annotated[
    str | None,
    typer.Option(help="Whether a task has a say in maps that it does not adapt: skip (no) or zero (yes)."),
]


@many.command("init")
def init(
    base: Annotated[
        str, typer.Argument(help="The model that all tasks are tuned from: a folder or a Hub id.")
    ],
    out: NewFolder,
    statistics: Annotated[
        str,
        typer.Option(
            help="Of each map's inputs: full, block, diag, lowrank, or identity, which needs no data."
        ),
    ] = "full",
    keep: Annotated[
        str,
        typer.Option(help="Of each task's statistics: full, for exact removal, or none, their sum alone."),
    ] = "full",
    pooling: Annotated[
        str,
        typer.Option(
            help="Images are compared by the mean over their positions, or by each: mean or position."
        ),
    ] = "mean",
    preset: Preset = None,
    scale: Scale = None,
    ridge: Ridge = None,
    energy: Energy = None,
    forget: Forget = None,
    offdiag: Offdiag = None,
    normalize: Normalize = None,
    missing: Missing = None,
) -> None:
    """Begin a state without tasks.

    Example:  submerge many init base/ -o state/
    """
    lpm = _given(locals(), LPM)
    from submerge.continual import Continual

    Continual.begin(out, base, statistics=statistics, keep=keep, pooling=pooling, **lpm)
    typer.echo(str(out))


@many.command("add")
def add(
    state: State,
    task: Task,
    model: Annotated[
        str, typer.Option(help="The task's LoRA adapter, or its whole model: a folder, a file or a Hub id.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Inputs of the task: a file, a folder, a data set.")
    ] = None,
    share_projector: Annotated[
        str | None, typer.Option(help="A task with the same images: both get the mean of their projectors.")
    ] = None,
    prototypes: Annotated[
        int, typer.Option(min=1, help="The most prototypes of its images: means of clusters.")
    ] = 1,
    samples: Samples = None,
    batch_size: Batch = 16,
    max_length: Length = 512,
    device: Device = "cpu",
    base: Base = None,
    json: Json = False,
) -> None:
    """Add a task: its adapter or model, and what its own model feeds each linear map on its inputs.

    Example:  submerge many add state/ --task law --model law-lora/ --data law.jsonl --samples 256
    """
    passes = _given(locals(), PASSES)
    from submerge.continual import Continual

    with progress(quiet=False) as show:
        opened = Continual(state)
        warnings = opened.add(
            task,
            model,
            data,
            share_projector=share_projector,
            prototypes=prototypes,
            base=base,
            **_running(passes, show),
        )
    print_warnings(warnings)
    record = opened.record(task)
    if json:
        print_json({**asdict(record), "warnings": warnings})
        return
    for line in _added(record):
        typer.echo(line)


def _added(record: TaskRecord) -> Iterator[str]:
    rows = f"{record.rows} rows of {record.samples} inputs"
    kind = "weights of a whole model" if record.weight_bytes else f"rank {record.rank}"
    yield f"{record.name}: {record.maps} linear maps, {kind}, {rows}"
    if record.weight_bytes:
        yield f"{size(record.weight_bytes)} of weights"
    kept = f", of which {size(record.moment_bytes)} keep its removal exact" if record.moment_bytes else ""
    yield f"{size(record.bytes)}{kept}"
    if (own := record.projector) is not None:
        kind = f"a projector of {size(own.bytes)}" if own.bytes else "the base's projector"
        near = f"; overlap of {own.overlap:.0%} with {own.nearest}" if own.nearest else ""
        yield f"{kind}; prototypes: {own.prototypes}, of {own.images} images{near}"


@many.command("remove")
def remove(
    state: State,
    task: Task,
    model: Annotated[str | None, typer.Option(help="Its adapter, where moments are not kept.")] = None,
    data: Annotated[str | None, typer.Option(help="Its inputs, where moments are not kept.")] = None,
    samples: Samples = None,
    batch_size: Batch = 16,
    max_length: Length = 512,
    device: Device = "cpu",
    base: Base = None,
) -> None:
    """Remove a task: the merge is then what it would be had the task never been added.

    Example:  submerge many remove state/ --task law
    """
    passes = _given(locals(), PASSES)
    from submerge.continual import Continual

    with progress(quiet=False) as show:
        Continual(state).remove(task, model=model, data=data, base=base, **_running(passes, show))
    typer.echo(f"{task} is removed")


@many.command("export")
def export(
    state: State,
    out: NewFolder,
    form: Annotated[str, typer.Option("--as", help="What to write: adapter or checkpoint.")] = "adapter",
    rank: Rank = None,
    preset: Preset = None,
    scale: Scale = None,
    ridge: Ridge = None,
    energy: Energy = None,
    forget: Forget = None,
    offdiag: Offdiag = None,
    normalize: Normalize = None,
    weight: Weight = None,
    projectors: Annotated[
        str, typer.Option(help="The tasks' projectors: mixed for each image, or merged into their mean.")
    ] = "mixed",
    score: Annotated[
        str | None,
        typer.Option(
            help="How images are compared: discriminant, the default where there is one, or prototypes."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="τ of the softmax by which projectors are mixed, by default 1 of a discriminant and 0.03 of "
            "prototypes; 0: the nearest alone.",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="The most projectors that are mixed.")] = None,
    key: Annotated[
        str | None,
        typer.Option(help="What is compared: image, text or both; by default as images overlap."),
    ] = None,
    centred: Annotated[
        bool,
        typer.Option("--centred/--not-centred", help="Whether the mean of the prototypes is taken away."),
    ] = True,
    base: Base = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of a checkpoint, such as bfloat16; the base's by default.")
    ] = None,
    threads: Threads = None,
    max_memory: Memory = None,
    shard_size: Shard = "5GB",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write the merge of all tasks, as an adapter or folded into the base, with the gate of their projectors.

    Examples:
    submerge many export state/ -o merged-lora/
    submerge many export state/ -o merged-lora/ --weight law=0.5 --rank 32
    submerge many export state/ -o merged/ --as checkpoint --dtype bfloat16
    """
    lpm, gate = _given(locals(), LPM), _given(locals(), GATE)
    from submerge.continual import Continual

    chosen = settings(threads=threads, max_memory=max_memory, shard_size=shard_size)
    report = Continual(state).export(
        out,
        form=form,
        rank=rank,
        base=base,
        dtype=dtype,
        weights=_weights(weight or ()),
        overwrite=overwrite,
        settings=chosen,
        **gate,
        **lpm,
    )
    if json:
        print_json(vars(report))
        return
    print_warnings(report.warnings)
    typer.echo(str(report.out))
    error = f", relative error of the updates at most {report.error:.3g}" if report.error > 1e-6 else ""
    mixed = f" · {report.projectors} projectors mixed by image" if report.projectors else ""
    dense = "dense updates" if report.scale else "no updates, for the scale is 0"
    rank_told = f"rank {report.rank}" if report.rank else dense
    told = (f"{n} × {report.weights[n]:g}" if n in report.weights else n for n in report.tasks)
    typer.echo(f"{report.form} of {', '.join(told)} · {rank_told}{error}{mixed}")


def _weights(given: Sequence[str]) -> dict[str, float]:
    """Return weights by task; raise `RequestError` for what is none, and for two of one task."""
    weights: dict[str, float] = {}
    for pair in given:
        task, _, number = pair.partition("=")
        try:
            weight = float(number)
        except ValueError:
            hint = "write --weight law=0.5, once for each task"
            raise RequestError(Problem(f"{pair!r} is not TASK=NUMBER", "--weight", hint)) from None
        if task in weights:
            raise RequestError(Problem(f"{task} has a weight twice", "--weight", "give it one"))
        weights[task] = weight
    return weights


@many.command("status")
def status(
    state: State,
    condition: Annotated[
        bool, typer.Option("--condition", help="Also the condition numbers, which takes a while.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what a state holds, and what it costs.

    Example:  submerge many status state/
    """
    from submerge.continual import Continual

    found = Continual(state).status(condition=condition)
    if json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))


@many.command("join")
def join(
    first: State,
    second: Annotated[Path, typer.Argument(readable=False, help="Another state of the same base.")],
    out: NewFolder,
) -> None:
    """Make one state of two, with the tasks of both.

    Example:  submerge many join one/ other/ -o state/
    """
    from submerge.continual import Continual

    joined = Continual.join(first, second, out)
    typer.echo(f"{out}\n{', '.join(joined.tasks)}")


def _given(arguments: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return those of a command's arguments that have these names, where they were given."""
    return {name: value for name in names if (value := arguments.get(name)) is not None}


def _running(passes: dict[str, Any], show: Callable[[BatchProgress], None]) -> dict[str, Any]:
    """Return how inputs are run, with their progress shown."""
    return {**passes, "progress": lambda done, total: show(BatchProgress(done, total))}
