"""Names as the rows and columns of a picture: cut short, and modules by their layers where they are many."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.names import layer_of

__all__ = ["Row", "layer_rows", "module_rows", "shortened", "shortened_front"]

LONGEST = 24

Row = tuple[str, list[int]]
"""A label, and the places of the names that it stands for."""


def module_rows(names: Sequence[str], most: int) -> list[Row]:
    """Return a row for each module, or a row for each layer where there would be more than `most`."""
    if len(names) > most and (rows := layer_rows(names)):
        return rows
    several = len(_stacks(names)) > 1
    return [(_label(name, several), [place]) for place, name in enumerate(names)]


def layer_rows(names: Sequence[str]) -> list[Row]:
    """Return a row for each layer, in the order in which they are met, without modules outside of layers."""
    layers: dict[tuple[str, int], list[int]] = {}
    for place, name in enumerate(names):
        if layer := layer_of(name):
            layers.setdefault(layer, []).append(place)
    several = len(_stacks(names)) > 1
    return [(_layer(stack, number, several), places) for (stack, number), places in layers.items()]


def shortened(name: str) -> str:
    """Return a name, or the start of one that is too long."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def shortened_front(name: str) -> str:
    """Return a name, or the end of one that is too long."""
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def _stacks(names: Sequence[str]) -> set[str]:
    return {layer[0] for name in names if (layer := layer_of(name))}


def _label(name: str, several: bool) -> str:
    """Return a module's name as its layer and what it is called there."""
    layer = layer_of(name)
    if layer is None:
        return shortened_front(name)
    stack, number = layer
    return f"{_layer(stack, number, several)}  {shortened_front(name.removeprefix(f'{stack}.{number}.'))}"


def _layer(stack: str, number: int, several: bool) -> str:
    return f"{stack + ' ' if several else ''}layer {number}"
