"""`submerge many …`: a state of tasks that grows, and what is exported from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from submerge.cli import _many_options as options
from submerge.cli._common import print_json, print_warnings, settings
from submerge.cli._options import Device, Json, Memory, NewFolder, Overwrite, Rank, Shard, Threads
from submerge.cli._progress import BatchProgress, progress
from submerge.errors import Problem, RequestError, size

if TYPE_CHECKING:
    from submerge.continual import ExportReport, TaskRecord

__all__ = ["many"]

many = typer.Typer(
    help="Add tasks to a model one at a time, remove them, and export their merge.", no_args_is_help=True
)

LPM = ("preset", "scale", "ridge", "energy", "forget", "offdiag", "normalize", "missing")
PASSES = ("samples", "batch_size", "max_length", "device")
GATE = ("projectors", "score", "temperature", "top", "key", "centred")
"""Arguments that are handed on by their names."""


@many.command("init")
def init(
    base: Annotated[
        str, typer.Argument(help="The model that all tasks are tuned from: a folder or a Hub id.")
    ],
    out: NewFolder,
    statistics: options.Statistics = "full",
    keep: options.Keep = "full",
    pooling: options.Pooling = "mean",
    preset: options.Preset = None,
    scale: options.Scale = None,
    ridge: options.Ridge = None,
    energy: options.Energy = None,
    forget: options.Forget = None,
    offdiag: options.Offdiag = None,
    normalize: options.Normalize = None,
    missing: options.Missing = None,
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
    state: options.State,
    task: options.Task,
    model: Annotated[
        str, typer.Option(help="The task's LoRA adapter, or its whole model: a folder, a file or a Hub id.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Inputs of the task: a file, a folder, a data set.")
    ] = None,
    share_projector: options.Shared = None,
    prototypes: options.Prototypes = 1,
    samples: options.Samples = None,
    batch_size: options.Batch = 16,
    max_length: options.Length = 512,
    device: Device = "cpu",
    base: options.Base = None,
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
    state: options.State,
    task: options.Task,
    model: Annotated[str | None, typer.Option(help="Its adapter, where moments are not kept.")] = None,
    data: Annotated[str | None, typer.Option(help="Its inputs, where moments are not kept.")] = None,
    samples: options.Samples = None,
    batch_size: options.Batch = 16,
    max_length: options.Length = 512,
    device: Device = "cpu",
    base: options.Base = None,
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
    state: options.State,
    out: NewFolder,
    form: options.Form = "adapter",
    rank: Rank = None,
    preset: options.Preset = None,
    scale: options.Scale = None,
    ridge: options.Ridge = None,
    energy: options.Energy = None,
    forget: options.Forget = None,
    offdiag: options.Offdiag = None,
    normalize: options.Normalize = None,
    weight: options.Weight = None,
    projectors: options.Projectors = "mixed",
    score: options.Score = None,
    temperature: options.Temperature = None,
    top: options.Top = None,
    key: options.Key = None,
    centred: options.Centred = True,
    base: options.Base = None,
    dtype: options.Dtype = None,
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
    typer.echo(f"{report.out}\n{_exported(report)}")


def _exported(report: ExportReport) -> str:
    """Return what was written, of which tasks, and what the rank left out."""
    error = f", relative error of the updates at most {report.error:.3g}" if report.error > 1e-6 else ""
    mixed = f" · {report.projectors} projectors mixed by image" if report.projectors else ""
    dense = "dense updates" if report.scale else "no updates, for the scale is 0"
    rank_told = f"rank {report.rank}" if report.rank else dense
    told = (f"{n} × {report.weights[n]:g}" if n in report.weights else n for n in report.tasks)
    return f"{report.form} of {', '.join(told)} · {rank_told}{error}{mixed}"


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
    state: options.State,
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
    first: options.State,
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
