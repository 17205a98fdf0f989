"""Arguments and options of `submerge many …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Base",
    "Batch",
    "Centred",
    "Dtype",
    "Energy",
    "Forget",
    "Form",
    "Keep",
    "Key",
    "Length",
    "Missing",
    "Normalize",
    "Offdiag",
    "Pooling",
    "Preset",
    "Projectors",
    "Prototypes",
    "Ridge",
    "Samples",
    "Scale",
    "Score",
    "Shared",
    "State",
    "Statistics",
    "Task",
    "Temperature",
    "Top",
    "Weight",
]

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
Statistics = Annotated[
    str,
    typer.Option(help="Of each map's inputs: full, block, diag, lowrank, or identity, which needs no data."),
]
Keep = Annotated[
    str,
    typer.Option(help="Of each task's statistics: full, for exact removal, or none, their sum alone."),
]
Pooling = Annotated[
    str,
    typer.Option(help="Images are compared by the mean over their positions, or by each: mean or position."),
]
Shared = Annotated[
    str | None, typer.Option(help="A task with the same images: both get the mean of their projectors.")
]
Prototypes = Annotated[int, typer.Option(min=1, help="The most prototypes of its images: means of clusters.")]
Form = Annotated[str, typer.Option("--as", help="What to write: adapter or checkpoint.")]
Projectors = Annotated[
    str, typer.Option(help="The tasks' projectors: mixed for each image, or merged into their mean.")
]
Score = Annotated[
    str | None,
    typer.Option(
        help="How images are compared: discriminant, the default where there is one, or prototypes."
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="τ of the softmax by which projectors are mixed, by default 1 of a discriminant and 0.03 of "
        "prototypes; 0: the nearest alone.",
    ),
]
Top = Annotated[int | None, typer.Option(min=1, help="The most projectors that are mixed.")]
Key = Annotated[
    str | None,
    typer.Option(help="What is compared: image, text or both; by default as images overlap."),
]
Centred = Annotated[
    bool,
    typer.Option("--centred/--not-centred", help="Whether the mean of the prototypes is taken away."),
]
Dtype = Annotated[str | None, typer.Option(help="Of a checkpoint, such as bfloat16; the base's by default.")]
