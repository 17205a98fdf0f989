"""Layers that a recipe stacks: which layers of which models each run of the output's layers comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from submerge.recipe._model_entry import ModelEntry
from submerge.recipe._rules import Setting, written_settings

__all__ = ["LayerSource", "ModuleSlices", "Slice"]


@dataclass(frozen=True)
class LayerSource:
    """Layers `start … stop − 1` of one model; all of its layers where `stop` is None."""

    entry: ModelEntry
    start: int = 0
    stop: int | None = None

    def written(self) -> dict[str, Any]:
        """Return the source as a recipe writes it."""
        layers = {} if self.stop is None else {"layer_range": [self.start, self.stop]}
        return {"model": self.entry.model, **layers, "parameters": written_settings(self.entry.parameters)}


@dataclass(frozen=True, eq=False)
class Slice:
    """A run of the output's layers, each merged from one layer of each source.

    `participants` are the entries that the method sees, and `base` is the base of these layers. `parameters`
    have those of the module and of the recipe behind them; `own` are those of the slice alone. `where` is the
    slice's line.
    """

    sources: tuple[LayerSource, ...]
    participants: tuple[ModelEntry, ...]
    base: str | None
    parameters: Mapping[str, Setting]
    own: Mapping[str, Setting]
    where: str

    def written(self, base: str | None) -> dict[str, Any]:
        """Return the slice as it is written in a recipe with this base."""
        parts = {
            "sources": [source.written() for source in self.sources],
            "base_model": self.base if self.base != base else None,
            "parameters": written_settings(self.own),
        }
        return {key: value for key, value in parts.items() if value}


@dataclass(frozen=True, eq=False)
class ModuleSlices:
    """The slices of one module; its `name` is empty where a recipe has `slices` and no `modules`.

    `own` are the module's parameters, and `where` is its line.
    """

    name: str
    slices: tuple[Slice, ...]
    own: Mapping[str, Setting]
    where: str

    def written(self, base: str | None) -> dict[str, Any]:
        """Return the module as it is written in a recipe with this base."""
        first = self.slices[0]
        if any(source.stop is None for source in first.sources):
            parts: dict[str, Any] = {"models": [source.written() for source in first.sources]}
        else:
            parts = {"slices": [piece.written(base) for piece in self.slices]}
        return {**parts, **({"parameters": written_settings(self.own)} if self.own else {})}
