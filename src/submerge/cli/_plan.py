"""`submerge plan`: the dry run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from submerge.cli._common import (
    document_title,
    load_documents,
    load_mixture,
    print_json,
    settings,
    source_of,
)
from submerge.cli._options import (
    Device,
    Energy,
    Form,
    Json,
    Lenient,
    Memory,
    Pickle,
    Rank,
    Recipe,
    Shard,
    Threads,
)
from submerge.errors import Problem, RequestError, few, size

if TYPE_CHECKING:
    from rich.table import Table

    from submerge.engine import MergePlan
    from submerge.recipe import Documents


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
    mergekit: Lenient = False,
    json: Json = False,
) -> None:
    """Check a recipe and its inputs, and say what a merge would read, compute and write.

    Of the models, headers and a few values are read. The recipe may be one for a mixture of experts, too.
    """
    source = source_of(recipe)
    chosen = settings(
        device=device,
        threads=threads,
        max_memory=max_memory,
        shard_size=shard_size,
        allow_pickle=allow_pickle,
    )
    from submerge import engine
    from submerge.recipe import is_mixture

    if is_mixture(source):
        _check_no_adapter({"--as": form, "--rank": rank, "--energy": energy})
        print_plan_of(engine.plan_mixture(load_mixture(source, mergekit=mergekit), chosen), json=json)
        return
    documents = load_documents(source, form, rank, energy, mergekit=mergekit)
    plans = engine.plan_documents(documents, chosen)
    described = {name: _described(merge_plan) for name, merge_plan in plans.items()}
    if len(documents.recipes) > 1:
        _print_documents(documents, described, json=json)
    elif json:
        print_json(*described.values())
    else:
        print_plan(*described.values())


def _check_no_adapter(flags: Mapping[str, object]) -> None:
    """Refuse flags that say something of an adapter, where a mixture of experts is planned."""
    if given := [flag for flag, value in flags.items() if value not in (None, "checkpoint")]:
        hint = f"leave {few(given)} out"
        raise RequestError(Problem("a mixture of experts is no adapter", few(given), hint))


def print_plan_of(merge_plan: MergePlan, *, json: bool) -> None:
    """Print one plan."""
    described = _described(merge_plan)
    if json:
        print_json(described)
    else:
        print_plan(described)


def _described(merge_plan: MergePlan) -> dict[str, Any]:
    """Return a plan as plain data, with the time and the space that it is about."""
    from submerge import engine

    described = engine.describe(merge_plan)
    described["compute_seconds"] = engine.compute_seconds(merge_plan) * (merge_plan.virtual_reads or 1)
    described["free"] = shutil.disk_usage(Path.cwd()).free
    return described


def _print_documents(documents: Documents, described: dict[str, dict[str, Any]], *, json: bool) -> None:
    """Print the plans of several documents, in the order in which they are merged."""
    if json:
        plans = [{"name": name, "uses": documents.uses[name]} | plan for name, plan in described.items()]
        later = [recipe.name for recipe in documents.recipes if recipe.name not in described]
        print_json({"documents": plans, "later": later, "warnings": documents.warnings})
        return
    for name, plan in described.items():
        uses = f", from {few(documents.uses[name], 8)}" if documents.uses[name] else ""
        typer.echo(f"{document_title(name)}{uses}")
        print_plan(plan)
        typer.echo()
    for recipe in documents.recipes:
        if recipe.name not in described:
            of = few(documents.uses[recipe.name], 8)
            typer.echo(f"{document_title(recipe.name)}, from {of}: planned when these are merged")
    for line in documents.warnings:
        typer.echo(f"warning  {line}")


def print_plan(plan: dict[str, Any]) -> None:
    _print_inputs(plan)
    if plan["files"]:
        _print_checkpoint(plan)
    else:
        typer.echo(f"reads    {size(plan['reads'])}")
        typer.echo(f"writes   {plan['adapter_file']}, as large as its rank turns out")
    typer.echo(f"memory   at most {size(plan['memory'])} with {plan['workers']} workers")
    typer.echo(f"time     about {plan['compute_seconds']:.1f} s of computing, and what the disk adds")


def _print_inputs(plan: dict[str, Any]) -> None:
    """Print the models, what is done to their tensors, and what is noteworthy about them."""
    from rich.console import Console
    from rich.text import Text

    # tokens such as [/INST] are no markup; and lines for a pipe are not folded
    width = None if sys.stdout.isatty() else 10_000
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    console.print(Text(plan["method"], "bold"), plan["equation"])
    console.print(_models(plan["models"]))
    for stack in plan.get("stack", ()):
        _print_stack(stack)
    if "mixture" in plan:
        _print_mixture(plan["mixture"])
    console.print(_groups(plan["groups"]))
    for model in plan["models"]:
        if "names" in model:
            console.print(f"names       {model['model']}: {model['names']}")
        if "adapter" in model:
            notes = "".join(f"; {note}" for note in model["adapter"]["notes"])
            console.print(f"adapter     {model['model']}: {model['adapter']['parts']} parts{notes}")
    for specialist in plan.get("specialists", ()):
        _print_specialist(specialist)
    if "projectors" in plan:
        _print_projectors(plan["projectors"])
    for line in plan["vocabulary"]:
        console.print("vocabulary ", line)
    if "coefficients" in plan:
        console.print("weights    ", plan["coefficients"])
    for line in plan["warnings"]:
        console.print(Text("warning ", "yellow"), line)


def _print_stack(stack: dict[str, Any]) -> None:
    """Print a picture of a stack of layers: a row for each run of them, with the layers of each source."""
    sources = [source for run in stack["runs"] for source in run["sources"]]
    wide = max(len(run["layers"]) for run in stack["runs"])
    widths = [max(len(source[key]) for source in sources) for key in ("model", "layers")]
    typer.echo(f"stack       {stack['module']}: {stack['layers']} layers")
    for run in stack["runs"]:
        of_output = run["layers"]
        for source in run["sources"]:
            model, layers = source["model"].ljust(widths[0]), source["layers"].rjust(widths[1])
            typer.echo(
                f"  {of_output:>{wide}} {'←' if of_output else ' '} {model}  {layers}  {source['bar']}"
            )
            of_output = ""
    for place in ("before", "behind"):
        if stack[place]:
            typer.echo(f"  {place} the layers: {' + '.join(stack[place])}")
    for model, layers in stack["unread"].items():
        typer.echo(f"  not read: {layers} of {model}")


def _print_mixture(mixture: dict[str, Any]) -> None:
    """Print what a mixture of experts will be."""
    count = mixture["experts_per_token"]
    total, active = (f"{mixture[key]:,}" for key in ("parameters", "active_parameters"))
    typer.echo(f"mixture     {mixture['architecture']}: {mixture['layers']} layers")
    experts = [(str(number), expert) for number, expert in enumerate(mixture["experts"])]
    for number, expert in [*experts, *(("shared", own) for own in mixture.get("shared_experts", ()))]:
        prompts = len(expert.get("positive_prompts", ())) + len(expert.get("negative_prompts", ()))
        of = f", {prompts} prompts" if prompts else ""
        typer.echo(f"  expert {number:<6} {expert['source_model']}{of}")
    typer.echo(f"  gates         {mixture['gates']}; {count} of {len(experts)} experts for a token")
    typer.echo(f"  parameters    {total}, of which {active} act on a token")


def _print_specialist(specialist: dict[str, Any]) -> None:
    """Print where the pieces of one specialist of a composed model lie."""
    typer.echo(f"modality    {specialist['name']}: {', '.join(specialist['architectures'])}")
    for piece in ("encoder", "projector"):
        for module in specialist[piece]:
            tensors = f"{module['tensors']} tensors, {size(module['bytes'])}"
            typer.echo(f"  {piece:<9} {module['prefix']} ({tensors})")
    own, shared = specialist["own_placeholder_id"], specialist["placeholder_id"]
    renumbered = "" if own == shared else f" ({own} in its own vocabulary)"
    typer.echo(f"  language  {specialist['language_update']}")
    typer.echo(f"  stream    {specialist['stream']}")
    typer.echo(f"  input     {specialist['placeholder']}, token {shared}{renumbered}")


def _print_projectors(projectors: dict[str, Any]) -> None:
    """Print the projectors whose outputs are mixed, and what the prototypes are made of."""
    for group in projectors["groups"]:
        what = f"of {few(group['models'], 8)} ({size(group['bytes'])})"
        typer.echo(f"projector   {few(group['tasks'], 8)}: {what}")
    for task, place in projectors["from"].items():
        typer.echo(f"prototypes  {task}: at most {projectors['prototypes']}, from {place}")
    typer.echo(f"score       {projectors['score']}")


def _models(models: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("model", "role", "tensors", "size", "not used", box=None, pad_edge=False)
    for model in models:
        label = model["model"] + (f"@{model['revision'][:12]}" if "revision" in model else "")
        unused = few(model.get("unused", []))
        table.add_row(label, model["role"], str(model["tensors"]), size(model["bytes"]), unused)
    return table


def _groups(groups: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("tensors", "×", "shape", "reads", "writes", "treatment", box=None, pad_edge=False)
    for group in groups:
        shape = "×".join(map(str, group["shape"])) or "scalar"
        as_matrix = " as a matrix" if "matrix" in group else ""
        treatment = group["treatment"] + as_matrix + (f": {group['why']}" if "why" in group else "")
        reads = ", ".join(group["reads"])
        table.add_row(group["tensors"], str(group["count"]), shape, reads, group["writes"], treatment)
    return table


def _print_checkpoint(plan: dict[str, Any]) -> None:
    """Print what a checkpoint will hold, and the bank beside it if there is one."""
    if "virtual_reads" in plan:
        reads, count = size(plan["reads"]), plan["virtual_reads"]
        times = "once in all" if count == 1 else f"{count} times in all"
        typer.echo(f"reads    {reads} each time")
        typer.echo(f"writes   needs no folder: it is merged as others read it, {times}")
        return
    files = ", ".join(f"{name} ({size(count)})" for name, count in list(plan["files"].items())[:4])
    more = f" and {len(plan['files']) - 4} more" if len(plan["files"]) > 4 else ""
    typer.echo(f"reads    {size(plan['reads'])}, once or more as the method needs")
    typer.echo(f"writes   {size(plan['writes'])} ({size(plan['free'])} free here): {files}{more}")
    if "bank" in plan:
        _print_bank(plan)
    typer.echo(f"carries  {few(plan['side_files'], 8) or 'no side files'}")


def _print_bank(plan: dict[str, Any]) -> None:
    """Print what lies beside the checkpoint, and is chosen from for each input or each token."""
    bank, total = plan["bank"], plan["writes"] + plan["bank"]["most"]
    names, bound = few([task["name"] for task in bank["tasks"]], 8), "at most"
    if "specialists" in plan:
        bound = "about"  # whether values are the base's is seen by the first of them
        gated = bank["settings"]["modality_tokens"] == "own"
        what = "a gate over" if gated else "no gate: all tokens run with the merged model; modules of"
        parts = "modules and streams" if gated else "modules"
        typer.echo(f"keeps    {what} {len(bank['tasks'])} modalities: {names}")
        typer.echo(f"         their {parts} in {bank['file']}, {bound} {size(bank['most'])};")
    elif "projectors" in plan:
        typer.echo(f"keeps    a gate over the projectors of {len(bank['tasks'])} tasks: {names}")
        typer.echo(f"         projectors and prototypes in {bank['file']}, {bound} {size(bank['most'])};")
    else:
        typer.echo(f"keeps    a gate over {len(bank['tasks'])} tasks: {names}")
        typer.echo(f"         their updates and heads in {bank['file']}, {bound} {size(bank['most'])};")
    typer.echo(f"         with the plain checkpoint {bound} {size(total)}")
