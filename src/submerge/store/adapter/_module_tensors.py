"""The tensors that PEFT saves of one module, taken by name and looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from submerge.errors import Problem, RequestError
from submerge.store.adapter._config import AdapterConfig
from submerge.store.adapter._parts import Part
from submerge.store.adapter._unsupported import MERGE_FIRST
from submerge.store.format import TensorEntry

__all__ = ["Builder", "Entries", "Parts", "UnfitError", "matrix", "shared_tensor"]

Entries: TypeAlias = Mapping[str, TensorEntry]
Parts: TypeAlias = dict[str, Part]
Builder: TypeAlias = Callable[[str, Entries, AdapterConfig, Entries], Parts]
"""Returns the parts of a module, by its path, its tensors, the configuration, and what all modules share."""


class UnfitError(Exception):
    """The tensors of a module are not what the configuration describes; the text says why."""


def matrix(entries: Entries, name: str, dimensions: int = 2) -> TensorEntry:
    """Return a tensor of a module; raise `UnfitError` where there is none of so many dimensions."""
    entry = entries.get(name)
    if entry is None:
        raise UnfitError(f"lacks its tensor {name}")
    if len(entry.shape) != dimensions or 0 in entry.shape:
        raise UnfitError(f"has {name} of the shape {list(entry.shape)}")
    return entry


def shared_tensor(shared: Entries, name: str, config: AdapterConfig, dimensions: int = 2) -> TensorEntry:
    """Return a tensor of all modules; raise `RequestError` where it does not have so many dimensions."""
    entry = shared[name]
    if len(entry.shape) != dimensions or 0 in entry.shape:
        raise RequestError(Problem(f"has {name} of the shape {list(entry.shape)}", config.where, MERGE_FIRST))
    return entry
