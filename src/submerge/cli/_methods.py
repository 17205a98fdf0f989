"""`submerge methods`: what can be asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from submerge.cli._common import print_json
from submerge.cli._options import Json

if TYPE_CHECKING:
    from submerge.methods import Method, Option


def _names() -> list[str]:
    from submerge.methods import METHODS

    return list(METHODS)


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method; all are listed by default.", autocompletion=_names)
    ] = None,
    json: Json = False,
) -> None:
    """List the merge methods, or show one: its equation, options, defaults and source."""
    from submerge.methods import METHODS, find_method

    if name is None:
        if json:
            print_json([_data(m) for m in METHODS.values()])
            return
        width = max(map(len, METHODS))
        for method in METHODS.values():
            typer.echo(f"{method.name:<{width}}  {method.use}")
        return
    method = find_method(name)
    if json:
        print_json(_data(method))
    else:
        _print(method)


def _data(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "title": method.title,
        "equation": method.equation,
        "source": method.source,
        "use": method.use,
        "base": "required" if method.needs_base else "optional",
        "models": [method.min_models, method.max_models],
        "differs": method.differs,
        "options": [_option(o) for o in method.options],
    }


def _option(option: Option) -> dict[str, Any]:
    bounds = [b if math.isfinite(b) else None for b in (option.low, option.high)]
    return {
        "name": option.name,
        "type": option.kind.__name__,
        "default": option.default if isinstance(option.default, (bool, int, float, str)) else None,
        "required": not isinstance(option.default, (bool, int, float, str)),
        "for": "each model" if option.scope == "model" else "the merge",
        "range": bounds,
        "choices": list(option.choices),
        "tune": option.tune,
        "help": option.help,
    }


def _print(method: Method) -> None:
    most = "any number" if method.max_models is None else str(method.max_models)
    count = most if method.min_models == method.max_models else f"{method.min_models} to {most}"
    typer.echo(f"{method.title} ({method.name})\n\n  {method.equation}\n")
    typer.echo(f"use      {method.use}")
    typer.echo(f"models   {count}; base model {'required' if method.needs_base else 'optional'}")
    typer.echo(f"source   {method.source}")
    typer.echo(f"code     {(method.matrix or method.plan).__module__}")
    if method.differs:
        typer.echo(f"differs  {method.differs}")
    typer.echo("options" if method.options else "no options")
    for option in method.options:
        typer.echo(f"  {option.name} ({'; '.join(_marks(option))})\n      {option.help}")


def _marks(option: Option) -> list[str]:
    """Return what stands in brackets behind an option: its type, its default, where it is given."""
    data = _option(option)
    default = str(option.default).lower() if option.kind is bool else option.default
    marks = [data["type"], "required" if data["required"] else f"default {default}", f"for {data['for']}"]
    marks += ["usually tuned"] if option.tune else []
    marks += [" or ".join(option.choices)] if option.choices else []
    marks += [f"also written {name}" for name in option.names[1:] if not name.endswith("_")]
    return marks
