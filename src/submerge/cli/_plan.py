"""`submerge plan`: the dry run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import typer

from submerge.cli._common import load, print_json, settings, size
from submerge.cli._merge import Device, Energy, Form, Json, Memory, Pickle, Rank, Recipe, Shard, Threads
from submerge.errors import few


def plan(
    recipe: Recipe,
    form: Form = None,
    rank: Rank = None,
    energy: Energy = None,
    device: Device = "cpu",
    threads: Threads = None,
    max_memory: Memory = None,
    shard_size: Shard = "5GB",
    allow_pickle: Pickle = False,
    json: Json = False,
) -> None:
    """Check a recipe and its inputs, and say what a merge would read, compute and write.

    Only the recipe and the files' headers are read.
    """
    asked = load(recipe, form, rank, energy)
    chosen = settings(
        device=device,
        threads=threads,
        max_memory=max_memory,
        shard_size=shard_size,
        allow_pickle=allow_pickle,
    )
    from submerge import engine

    made = engine.make_plan(asked, chosen)
    described = engine.describe(made)
    described["compute_seconds"] = engine.compute_seconds(made)
    described["free"] = shutil.disk_usage(Path.cwd()).free
    if json:
        print_json(described)
    else:
        _print(described)


def _print(plan: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # tokens such as [/INST] are no markup; and lines for a pipe are not folded
    width = None if sys.stdout.isatty() else 10_000
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    console.print(Text(plan["method"], "bold"), plan["equation"])
    models = Table("model", "role", "tensors", "size", "not used", box=None, pad_edge=False)
    for m in plan["models"]:
        unused = m.get("unused", [])
        label = m["model"] + (f"@{m['revision'][:12]}" if "revision" in m else "")
        models.add_row(label, m["role"], str(m["tensors"]), size(m["bytes"]), few(unused))
    console.print(models)
    groups = Table("tensors", "×", "shape", "reads", "writes", "treatment", box=None, pad_edge=False)
    for g in plan["groups"]:
        shape = "×".join(map(str, g["shape"])) or "scalar"
        whole = " as a matrix" if "matrix" in g else ""
        treatment = g["treatment"] + whole + (f": {g['why']}" if "why" in g else "")
        groups.add_row(g["tensors"], str(g["count"]), shape, ", ".join(g["reads"]), g["writes"], treatment)
    console.print(groups)
    for m in plan["models"]:
        if "names" in m:
            console.print(f"names       {m['model']}: {m['names']}")
        if "adapter" in m:
            notes = "; ".join(m["adapter"]["notes"])
            console.print(
                f"adapter     {m['model']}: {m['adapter']['parts']} parts" + (f"; {notes}" if notes else "")
            )
    for line in plan["vocabulary"]:
        console.print("vocabulary ", line)
    for line in plan["warnings"]:
        console.print(Text("warning ", "yellow"), line)
    if not plan["files"]:
        typer.echo(f"reads    {size(plan['reads'])}")
        typer.echo(f"writes   {plan['adapter_file']}, as large as its rank turns out")
        _costs(plan)
        return
    files = ", ".join(f"{name} ({size(count)})" for name, count in list(plan["files"].items())[:4])
    more = f" and {len(plan['files']) - 4} more" if len(plan["files"]) > 4 else ""
    typer.echo(f"reads    {size(plan['reads'])}, once or more as the method needs")
    typer.echo(f"writes   {size(plan['writes'])} ({size(plan['free'])} free here): {files}{more}")
    if "bank" in plan:
        names = few([task["name"] for task in plan["bank"]["tasks"]], 8)
        most = size(plan["bank"]["most"])
        typer.echo(f"keeps    a gate over {len(plan['bank']['tasks'])} tasks: {names}")
        together = size(plan["writes"] + plan["bank"]["most"])
        typer.echo(f"         their updates and heads in {plan['bank']['file']}, at most {most};")
        typer.echo(f"         with the plain checkpoint at most {together}")
    typer.echo(f"carries  {few(plan['side_files'], 8) or 'no side files'}")
    _costs(plan)


def _costs(plan: dict[str, Any]) -> None:
    typer.echo(f"memory   at most {size(plan['memory'])} with {plan['workers']} workers")
    typer.echo(f"time     about {plan['compute_seconds']:.1f} s of computing, and what the disk adds")
