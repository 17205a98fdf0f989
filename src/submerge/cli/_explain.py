"""`submerge explain`: which rule and which value holds for a tensor, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from submerge.cli._common import (
    document_title,
    load_documents,
    load_mixture,
    print_json,
    print_warnings,
    source_of,
)
from submerge.cli._options import Json, Lenient, Pickle, Recipe
from submerge.errors import RequestError, size

if TYPE_CHECKING:
    from submerge.engine import MergePlan
    from submerge.recipe import Recipe as AnyRecipe


def explain(
    recipe: Recipe,
    tensor: Annotated[
        str, typer.Option("--tensor", "-t", help="A part of a name, or a pattern with * and ?.")
    ],
    allow_pickle: Pickle = False,
    mergekit: Lenient = False,
    json: Json = False,
) -> None:
    """Say what happens to the tensors that match, with which values, and where each comes from.

    The recipe may be one for a mixture of experts, too.
    """
    from submerge import engine
    from submerge.recipe import is_mixture

    unbounded = 2**62  # nothing is merged, so that no bound on memory can stand in the way
    settings, source = engine.Settings(allow_pickle=allow_pickle, max_memory=unbounded), source_of(recipe)
    if is_mixture(source):
        mixture = load_mixture(source, mergekit=mergekit)
        recipes: Sequence[AnyRecipe] = [mixture]
        plans: Mapping[str, MergePlan] = {"": engine.plan_mixture(mixture, settings)}
    else:
        documents = load_documents(source, mergekit=mergekit)
        recipes, plans = documents.recipes, engine.plan_documents(documents, settings)
    for asked in recipes:
        print_warnings(asked.warnings)
    several = len(plans) > 1
    explanations = _explanations(plans, tensor)
    if json:
        print_json(explanations if several else next(iter(explanations.values())))
        return
    for name, of_document in explanations.items():
        if several:
            typer.echo(document_title(name))
        for explanation in of_document:
            _print(explanation)


def _explanations(plans: Mapping[str, MergePlan], tensor: str) -> dict[str, list[dict[str, Any]]]:
    """Return what happens to matching tensors, by document, but for documents that have none."""
    from submerge import engine

    found: dict[str, list[dict[str, Any]]] = {}
    refusal: RequestError | None = None
    for name, plan in plans.items():
        try:
            found[name] = engine.explain(plan, tensor)
        except RequestError as error:
            refusal = refusal or error
    if refusal is not None and not found:
        raise refusal
    return found


def _print(line: dict[str, Any]) -> None:
    shape = "×".join(map(str, line["shape"])) or "scalar"
    typer.echo(
        f"{line['tensor']}  [{shape}]  depth {line['depth']:.3f}  {line['treatment']} → {line['writes']}"
    )
    if "why" in line:
        typer.echo(f"  because  {line['why']}")
    for read in line["reads"]:
        other = "" if read["tensor"] == line["tensor"] else f" {read['tensor']}"
        typer.echo(
            f"  reads  {read['model']}{other} ({read['dtype']})"
            + (f": {read['note']}" if "note" in read else "")
        )
    for name, values in line.get("options", {}).items():
        for value in values:
            who = f" of {value['model']}" if "model" in value else ""
            typer.echo(f"  {name}{who} = {_yaml(value['value'])}   {value['why']}")
    for part in line.get("keeps", []):
        what = f"at most rank {part['rank']}" if "rank" in part else "the whole update"
        typer.echo(f"  keeps  {part.get('task', 'the checkpoint')}: {what}, {size(part['bytes'])}")
    if "streams" in line:
        _print_streams(line["streams"])


def _print_streams(streams: list[dict[str, Any]]) -> None:
    """Print what the tokens of each modality of a composed model run with."""
    for stream in streams:
        kept = f" ({size(stream['bytes'])} in the bank)" if stream["bytes"] else ""
        typer.echo(f"  {stream['modality']}  runs with {stream['runs_with']}{kept}")
    if not streams:
        typer.echo("  streams  none: all tokens run with what is written")


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
