"""The problems of one recipe, each with its line and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from submerge.errors import Problem, RequestError, did_you_mean
from submerge.recipe._schema import RENAMED_KEYS

__all__ = ["KeyPath", "Positions", "Report", "dotted", "listed", "show"]

KeyPath: TypeAlias = tuple[str | int, ...]
"""Where a value stands in a recipe, as keys and indices from the root."""

NONE: Mapping[str, str] = MappingProxyType({})

Positions: TypeAlias = Mapping[KeyPath, tuple[int, int]]
"""The line and column (both from 1) at which each key or list entry was written."""


def dotted(path: KeyPath) -> str:
    """Return a path as text: `models[1].parameters.weight`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def show(value: Any) -> str:
    """Return a value as short text for a message, whatever the value is."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a very long number"
    return text if len(text) <= 60 else f"{text[:57]}…{text[-1]}"


def listed(names: Iterable[str]) -> str:
    """Return names as text, sorted: `'a', 'b', 'c'`."""
    return ", ".join(f"'{name}'" for name in sorted(names))


class Report:
    """Collects the problems of one recipe, and knows on which line each value was written.

    `lenient` says that what mergekit ignores is a warning, and no problem.
    """

    def __init__(self, name: str, positions: Positions, *, lenient: bool = False) -> None:
        self.name = name
        self.positions = positions
        self.lenient = lenient
        self._warnings: list[tuple[int, str]] = []
        self._problems: list[tuple[int, Problem]] = []
        self._paths: set[KeyPath] = set()

    def line(self, path: KeyPath) -> int | None:
        """Return the line of `path`, or of the nearest thing around it that has one."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.positions:
                return self.positions[path[:end]][0]
        return None

    def where(self, path: KeyPath) -> str:
        """Return `file.yaml:LINE`, or the dotted path where the recipe came without lines."""
        line = self.line(path)
        return f"{self.name}:{line}" if line is not None else dotted(path) or self.name

    def add(self, what: str, path: KeyPath, hint: str = "") -> None:
        """Note a problem at `path`."""
        self._problems.append((self.line(path) or 0, Problem(what, self.where(path), hint)))
        self._paths.update(path[:end] for end in range(len(path) + 1))

    def add_ignored(self, what: str, path: KeyPath, hint: str = "") -> None:
        """Note what mergekit does not read: as a problem at `path`, or as a warning where it is ignored."""
        if not self.lenient:
            self.add(what, path, hint)
            return
        self.warn(f"{what}; it is ignored, as by mergekit", path)

    def warn(self, what: str, path: KeyPath) -> None:
        """Note a warning at `path`."""
        self._warnings.append((self.line(path) or 0, str(Problem(what, self.where(path)))))

    def warn_at(self, what: str, line: int) -> None:
        """Note a warning at a line."""
        self._warnings.append((line, f"{self.name}:{line}: {what}"))

    def has(self, path: KeyPath) -> bool:
        """Return whether a problem was noted at `path` or inside it."""
        return path in self._paths

    def add_at(self, what: str, line: int, hint: str = "") -> None:
        """Note a problem at a line."""
        self._problems.append((line, Problem(what, f"{self.name}:{line}", hint)))

    def check_keys(
        self,
        given: Mapping[str, Any],
        valid: Sequence[str],
        path: KeyPath,
        *,
        absent: Mapping[str, str] = NONE,
        parameters: Iterable[str] = (),
        ours: bool = False,
    ) -> None:
        """Note the keys of a mapping at `path` that are not `valid`.

        Those of mergekit's that are `absent` here have a hint of their own, and may be there without a value.
        `parameters` are names whose place is the section `parameters` of the mapping.
        """
        for key, value in given.items():
            if key in valid:
                continue
            if key in parameters:
                hint = f"it is a parameter: write it under 'parameters', as parameters: {{{key}: …}}"
                self.add_ignored(f"unknown key {show(key)}", (*path, key), hint)
            elif key not in absent:
                self.unknown_key(key, valid, (*path, key), ours=ours)
            elif value is not None:
                self.add_ignored(f"'{key}' is not supported", (*path, key), absent[key])

    def unknown_key(self, name: str, valid: Sequence[str], path: KeyPath, *, ours: bool = False) -> None:
        """Note a key that is not known, with the nearest that is, or all of them.

        mergekit ignores it, but for what stands in a section that is `ours`.
        """
        others = f"valid here: {listed(valid)}" if valid else ""
        meant = RENAMED_KEYS.get(name.lower(), name)
        hint = did_you_mean(meant if meant in valid else name, valid, others)
        note = self.add if ours else self.add_ignored
        note(f"unknown key {show(name)}", path, hint)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is ignored, in the order of its lines."""
        return tuple(text for _, text in sorted(self._warnings, key=lambda entry: entry[0]))

    @property
    def problems(self) -> list[Problem]:
        """The problems so far, in the order of their lines."""
        return [problem for _, problem in sorted(self._problems, key=lambda entry: entry[0])]

    def raise_if_any(self) -> None:
        """Raise one `RequestError` with every problem that was noted."""
        if self._problems:
            raise RequestError(self.problems)
