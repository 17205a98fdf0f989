"""Where a tensor sits in a stack of layers, read from its name alone."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["depths", "layer_of"]


def layer_of(name: str) -> tuple[str, int] | None:
    """Return the stack's prefix and the layer's index from the first whole number in a dotted name.

    `model.layers.3.mlp.up_proj.weight` gives `("model.layers", 3)`; a name without a number gives None.
    """
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isascii() and part.isdigit() and len(part) <= 9:
            return ".".join(parts[:position]), int(part)
    return None


def depths(names: Iterable[str]) -> dict[str, float]:
    """Return each tensor's relative depth in its own stack: index / (n − 1), in [0, 1].

    n is the largest index of the stack plus one. A stack of one layer gives 1; a tensor outside every
    stack gives 0.
    """
    places = {name: layer_of(name) for name in names}
    last: dict[str, int] = {}
    for place in places.values():
        if place is not None:
            last[place[0]] = max(last.get(place[0], 0), place[1])
    return {name: _depth(place, last) for name, place in places.items()}


def _depth(place: tuple[str, int] | None, last: dict[str, int]) -> float:
    if place is None:
        return 0.0
    stack, index = place
    return index / last[stack] if last[stack] else 1.0
