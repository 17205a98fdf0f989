"""Which layers a router looks at: the setting `routing_layers`, parsed once.

    auto, all    every layer; with one pass, `auto` is the first third of them
    paper        the layer that the authors' code looks at
    first:3      the first three layers of each stack
    depth:0.75   the layer at that share of its stack's depth
    0,2-4        the layers with these numbers
    mlp          layers where an input goes to a module with this text in its name

A stack is a list of layers of one model: `vision_model.encoder.layers`. The recipe's check asks a rule what
the model lacks for it, the router which of the model's activations it accepts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from submerge.errors import Problem, RequestError

__all__ = ["LayerRule", "paper_site"]

WHERE = "parameters.routing_layers"
HINT = "all, paper, first:3, depth:0.75, numbers such as 0,2-4, or a part of the modules' names"

PAPER_LAYERS: Mapping[str, Mapping[int, int]] = {"encoder.block": {12: 10}, "": {12: 9, 24: 20}}
"""The layer that the authors' code routes by, by the end of its stack's name and the number of layers: T5's
encoder; ViT-B/32 and ViT-B/16, ViT-L/14. It was chosen on labelled items, and is no fixed share."""


def paper_site(stack: str, count: int) -> tuple[int, str]:
    """Return the layer and the input in it that the authors' code looks at, in a stack of `count` layers.

    That is the MLP's input, and of T5 that of the attention's output map. Stacks of a depth that the authors
    do not use have the layer at the share of the depth that those of 12 layers have.
    """
    end = next(end for end in PAPER_LAYERS if stack.endswith(end))
    known = PAPER_LAYERS[end]
    return known.get(count, known[12] * count // 12), "attention_out" if end else "mlp"


@dataclass(frozen=True)
class LayerRule(ABC):
    """The layers that a router looks at. `text` is the rule as it was written."""

    text: str

    @staticmethod
    def parse(text: str) -> LayerRule:
        """Return the rule that a text means; raise `RequestError` where it has the form of none."""
        if text in ("auto", "all"):
            return EveryLayer(text)
        if text == "paper":
            return PaperLayer(text)
        if ":" in text:
            return _with_number(text)
        numbers = _numbers(text)
        return NamedModules(text) if numbers is None else NumberedLayers(text, numbers)

    @abstractmethod
    def accepts(self, stack: str, layer: int, count: int, modules: Sequence[str]) -> bool:
        """Say whether an activation is looked at: that of a layer among the `count` of its stack.

        `modules` are the names of those that take the activation in.
        """

    def problems(self, tensors: Iterable[str]) -> list[Problem]:
        """Return what is wrong with the rule for a model with these tensors."""
        return []


@dataclass(frozen=True)
class EveryLayer(LayerRule):
    """`auto` and `all`."""

    def accepts(self, stack: str, layer: int, count: int, modules: Sequence[str]) -> bool:
        """Say yes."""
        return True


@dataclass(frozen=True)
class PaperLayer(LayerRule):
    """`paper`."""

    def accepts(self, stack: str, layer: int, count: int, modules: Sequence[str]) -> bool:
        """Say whether the authors' code looks at the layer."""
        return layer == paper_site(stack, count)[0]


@dataclass(frozen=True)
class FirstLayers(LayerRule):
    """`first:3`."""

    number: int

    def accepts(self, stack: str, layer: int, count: int, modules: Sequence[str]) -> bool:
        """Say whether the layer is one of the first."""
        return layer < self.number


@dataclass(frozen=True)
class LayerAtDepth(LayerRule):
    """`depth:0.75`."""

    share: float

    def accepts(self, stack: str, layer: int, count: int, modules: Sequence[str]) -> bool:
        """Say whether the layer is the one at this share of the depth."""
        return layer == int(self.share * count)


@dataclass(frozen=True)
class NumberedLayers(LayerRule):
    """`0,2-4`."""

    numbers: Collection[int]

    def accepts(self, stack: str, layer: int, count: int, modules: Sequence[str]) -> bool:
        """Say whether the layer has one of the numbers."""
        return layer in self.numbers

    def problems(self, tensors: Iterable[str]) -> list[Problem]:
        """Return the first number that no layer of the model has."""
        from submerge.names import layer_of  # here: a list of the methods needs none of it

        layers = {place[1] for name in tensors if (place := layer_of(name)) is not None}
        missing = sorted(set(self.numbers) - layers)
        if not missing:
            return []
        there = f"the model's layers are 0 to {max(layers)}" if layers else "the model has no numbered layers"
        return [Problem(f"routing_layers names layer {missing[0]}; {there}", WHERE, HINT)]


@dataclass(frozen=True)
class NamedModules(LayerRule):
    """A part of modules' names."""

    def accepts(self, stack: str, layer: int, count: int, modules: Sequence[str]) -> bool:
        """Say whether the name of a module has the text in it."""
        return any(self.text in module for module in modules)

    def problems(self, tensors: Iterable[str]) -> list[Problem]:
        """Return that no tensor has the text in its name."""
        if any(self.text in name for name in tensors):
            return []
        return [Problem(f"routing_layers is {self.text!r}, and no tensor has that in its name", WHERE, HINT)]


def _with_number(text: str) -> LayerRule:
    """Return the rule of `first:3` or `depth:0.75`."""
    name, _, number = text.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if name == "first" and value.is_integer() and value >= 1:
        return FirstLayers(text, int(value))
    if name == "depth" and 0 <= value < 1:
        return LayerAtDepth(text, value)
    raise RequestError(Problem(f"routing_layers cannot be {text!r}", WHERE, HINT))


def _numbers(text: str) -> frozenset[int] | None:
    """Return the layers that a text such as `0,2-4` names, or None where it is no such text."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            return None
        numbers |= set(range(int(first), int(last or first) + 1))
    return frozenset(numbers)
