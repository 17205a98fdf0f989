"""Merge methods by name: ours, and those that other packages register.

A package adds methods through the entry point group `submerge.methods`: each entry point loads a
`Method`, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from submerge.deprecated import warn_renamed
from submerge.errors import Problem, RequestError, WorkError, did_you_mean
from submerge.methods._base import (
    REQUIRED,
    BankBound,
    CalibrationSettings,
    CalibrationSpec,
    Fold,
    FoldPlan,
    GateSettings,
    GateSpec,
    MatrixFold,
    Merged,
    Method,
    Option,
    TensorSpec,
    Values,
)
from submerge.methods._mixture import MIXTURE

__all__ = [
    "METHODS",
    "MIXTURE",
    "REQUIRED",
    "BankBound",
    "CalibrationSettings",
    "CalibrationSpec",
    "Fold",
    "FoldPlan",
    "GateSettings",
    "GateSpec",
    "MatrixFold",
    "Merged",
    "Method",
    "Option",
    "TensorSpec",
    "Values",
    "find_method",
    "methods_with",
]

_OURS = (
    "linear",
    "slerp",
    "nuslerp",
    "karcher",
    "multislerp",
    "nearswap",
    "task_arithmetic",
    "model_stock",
    "sce",
    "arcee_fusion",
    "ram",
    "cat",
    "knots_ties",
    "tsv_m",
    "iso",
    "ssam",
    "wudi",
    "nsc",
    "many",
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
            loaded = point.load()
            _add(methods, (loaded,) if isinstance(loaded, Method) else loaded, point.value)
        return methods

    def __getitem__(self, name: str) -> Method:
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def __repr__(self) -> str:
        return f"<{len(self)} methods: {', '.join(self)}>"


def _add(methods: dict[str, Method], new: Iterable[Method], origin: str) -> None:
    for method in new:
        if method.name in methods:
            raise WorkError(f"{origin} registers a second merge method called {method.name!r}")
        methods[method.name] = method


METHODS: Mapping[str, Method] = _Registry()
"""All merge methods by name, ours first, then those of other packages; `METHODS["ties"].options`."""


def methods_with(test: Callable[[Method], object]) -> str:
    """Return the names of the methods of which something is true, as a hint has them.

    Examples:
        >>> from submerge.methods import methods_with
        >>> methods_with(lambda method: method.moments)
        'many or regmean'
    """
    *others, last = [name for name, method in METHODS.items() if test(method)]
    return f"{', '.join(others)} or {last}" if others else last


_RENAMED = {"Keeps": "BankBound", "Settings": "GateSettings"}


def __getattr__(name: str) -> Any:
    """Return what a deprecated name of this package means now."""
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed(f"submerge.methods.{name}", f"submerge.methods.{_RENAMED[name]}")
    return globals()[_RENAMED[name]]


def find_method(name: str) -> Method:
    """Return the method of this name or title, whatever its case, and whether `-`, `_` or a space parts it.

    Raises:
        RequestError: there is none; with the nearest name.

    Examples:
        >>> from submerge.methods import find_method
        >>> find_method("DARE-TIES").name, find_method("Model Stock").name
        ('dare_ties', 'model_stock')
    """
    wanted = _plain(name)
    for method in METHODS.values():
        if wanted in (_plain(method.name), _plain(method.title)):
            return method
    raise RequestError(Problem(f"no method is called {name!r}", "", did_you_mean(name, METHODS)))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
