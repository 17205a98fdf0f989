"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Device",
    "Document",
    "Energy",
    "Folder",
    "Form",
    "Json",
    "Lenient",
    "Memory",
    "NewFolder",
    "Nonfinite",
    "Out",
    "Overwrite",
    "OverwritePicture",
    "Pickle",
    "Plot",
    "Quiet",
    "Rank",
    "Recipe",
    "Resume",
    "Shard",
    "Threads",
]

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
NewFolder = Annotated[Path, typer.Option("--out", "-o", readable=False, help="The folder to make.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]
OverwritePicture = Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists.")]
Nonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Finish even if NaN or Inf is met.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the path alone, and warnings.")]
Document = Annotated[
    str | None, typer.Option(help="Of several documents, the name of the one; by default the result's.")
]
Plot = Annotated[Path | None, typer.Option(help="A picture to draw, .png or .svg.")]
