"""Merge methods by name: ours, and those that other packages register.

A package adds methods through the entry point group `submerge.methods`: each entry point loads a
`Method`, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points

from submerge.errors import WorkError
from submerge.methods._base import (
    REQUIRED,
    Fold,
    FoldPlan,
    Keeps,
    MatrixFold,
    Merged,
    Method,
    Option,
    Settings,
    TensorSpec,
    Values,
)

__all__ = [
    "METHODS",
    "REQUIRED",
    "Fold",
    "FoldPlan",
    "Keeps",
    "MatrixFold",
    "Merged",
    "Method",
    "Option",
    "Settings",
    "TensorSpec",
    "Values",
]

_OURS = (
    "linear",
    "slerp",
    "nuslerp",
    "karcher",
    "task_arithmetic",
    "model_stock",
    "sce",
    "cat",
    "knots_ties",
    "tsv_m",
    "iso",
    "ssam",
    "mass",
    "passthrough",
)


class _Registry(Mapping[str, Method]):
    """All methods by name, ours first; loaded at the first look."""

    @cached_property
    def _methods(self) -> dict[str, Method]:
        methods: dict[str, Method] = {}
        for module in _OURS:
            _add(methods, import_module(f"submerge.methods.{module}").METHODS, "submerge")
        for point in entry_points(group="submerge.methods"):
            found = point.load()
            _add(methods, (found,) if isinstance(found, Method) else found, point.value)
        return methods

    def __getitem__(self, name: str) -> Method:
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)


def _add(methods: dict[str, Method], found: Iterable[Method], origin: str) -> None:
    for method in found:
        if method.name in methods:
            raise WorkError(f"{origin} registers a second merge method called {method.name!r}")
        methods[method.name] = method


METHODS: Mapping[str, Method] = _Registry()
"""All merge methods by name, ours first, then those of other packages; `METHODS["ties"].options`."""
