"""Where a tensor sits in a stack of layers, read from its name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "depths",
    "is_before_layers",
    "is_further",
    "layer_index",
    "layer_of",
    "layer_stacks",
    "with_layer",
]


def layer_of(name: str) -> tuple[str, int] | None:
    """Return the stack's prefix and the layer's index from the first whole number in a dotted name.

    `model.layers.3.mlp.up_proj.weight` gives `("model.layers", 3)`; a name without a number gives None.
    """
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isascii() and part.isdigit() and len(part) <= 9:
            return ".".join(parts[:position]), int(part)
    return None


def layer_index(name: str) -> int:
    """Return the layer's index in a tensor's name, 0 for a name without a number."""
    place = layer_of(name)
    return place[1] if place else 0


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


_STACK_WORDS = frozenset({"layer", "layers", "h", "block", "blocks", "resblocks"})
"""What models call their list of layers."""
_INPUT_WORDS = re.compile(
    r"(?!embed_out)(?:.*(?:emb|embd|embeds|embed|embedding|embeddings)(?:_.*)?|embedder|wte|wpe|shared|relative_pe"
    r"|conv[12]|patch_conv|mm_.+|(?:layernorm|ln)_pre|pre_lay(?:er|r)norm)"
)
"""Modules between a model's inputs and its first layer: tables, positions, the first convolutions."""


def is_further(name: str) -> bool:
    """Return whether a tensor is of a module that predicts further tokens, beside the model's own layers.

    Qwen3-Next and Qwen3.5 call it `mtp`. transformers does not load it.
    """
    return "mtp" in name.split(".")


def layer_stacks(names: Iterable[str]) -> dict[str, int]:
    """Return the stacks of layers that tensors of these names are in, each with its number of layers.

    A stack is a list of modules in a model that is called as models call their layers. Where there is none,
    it is the list with most tensors. Numbers must run from 0 on: others are those of a sequence of functions.
    Modules that predict further tokens do not count.

    Examples:
        >>> from submerge.names import layer_stacks
        >>> layer_stacks(["embed.weight", "model.layers.0.mlp.weight", "model.layers.1.mlp.weight"])
        {'model.layers': 2}
    """
    numbers: dict[str, list[int]] = {}
    for name in names:
        place = layer_of(name)
        if place is not None and place[0] and not is_further(name):
            numbers.setdefault(place[0], []).append(place[1])
    counts = {stack: max(of) + 1 for stack, of in numbers.items() if set(of) == set(range(max(of) + 1))}
    called = {stack: n for stack, n in counts.items() if stack.rpartition(".")[2] in _STACK_WORDS}
    if called or not counts:
        return called
    longest = max(counts, key=lambda stack: len(numbers[stack]))
    return {longest: counts[longest]}


def with_layer(name: str, stack: str, layer: int) -> str:
    """Return the name of the same tensor in another layer of its stack.

    `model.layers.3.mlp.up_proj.weight` gives `model.layers.8.mlp.up_proj.weight` for layer 8.
    """
    place = layer_of(name)
    if place is None or place[0] != stack:
        raise ValueError(f"{name} is in no layer of {stack}")
    prefix = f"{stack}." if stack else ""
    return f"{prefix}{layer}{name[len(f'{prefix}{place[1]}') :]}"


def is_before_layers(name: str) -> bool:
    """Return whether a tensor outside the layers is used before them: an embedding, a first convolution.

    All others are used after them, such as the last norm and the output head.
    """
    *modules, last = name.split(".")
    return any(_INPUT_WORDS.fullmatch(word) for word in (*modules, last))
