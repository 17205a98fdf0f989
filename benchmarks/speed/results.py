"""The results of all runs of the benchmark in one file: a run replaces what it measures, the rest stays."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, page
from benchmarks.speed.bench import Result
from benchmarks.speed.rows import BARRED_SIZE

__all__ = ["Part", "default_out", "open_results"]

Results = dict[str, Any]
SETTINGS = ("size", "parameters", "threads")
"""What must be the same for two measurements to stand side by side."""


@dataclass
class Part:
    """The results with models of one number and one format, which are written after each measurement.

    Attributes:
        results: those of all parts.
        key: this part's name.
        save: writes all results.
    """

    results: Results
    key: str
    save: Callable[[Results], None]

    def floor(self, inputs: int, passes: int) -> Result | None:
        """Return the floor of a number of models read and of passes, if it was measured."""
        return self._floors(inputs).get(str(passes))

    def add_floor(self, inputs: int, passes: int, result: Result) -> None:
        """Keep a floor."""
        self._floors(inputs)[str(passes)] = result
        self.save(self.results)

    def merge(self, method: str, tool: str) -> Result | None:
        """Return a tool's result, if it was measured."""
        return self._part["methods"].get(method, {}).get(tool)

    def add_merge(self, method: str, tool: str, result: Result, facts: Results) -> None:
        """Keep a tool's result, and the facts that hold for a method's row."""
        self._part["methods"].setdefault(method, {}).update(facts | {tool: result})
        self.save(self.results)

    @property
    def _part(self) -> Results:
        part: Results = self.results["parts"][self.key]
        return part

    def _floors(self, inputs: int) -> dict[str, Result]:
        floors: dict[str, Result] = self._part["floors"].setdefault(str(inputs), {})
        return floors


def default_out(options: argparse.Namespace) -> Path:
    """Return where results go that are told no place: those of small models beside them."""
    work: Path = options.work
    return page.RESULTS if options.size == BARRED_SIZE else work / options.size


def open_results(
    path: Path,
    new: Results,
    key: str,
    facts: Results,
    save: Callable[[Results], None],
    say: Callable[[str], None],
) -> Part:
    """Return the part `key` of the results at `path`, to which the run `new` adds.

    Results of another machine or of other settings are not kept: they would not stand side by side.
    """
    old = json.loads(path.read_text()) if path.exists() else {}
    if old and not _fits(old, new):
        say(f"{path} is of another machine or other settings: it starts anew")
        old = {}
    results = new | {"parts": old.get("parts", {})}
    part = results["parts"].setdefault(key, {"floors": {}, "methods": {}, "commands": []})
    part.update(facts)
    if new["command"] not in part["commands"]:
        part["commands"].append(new["command"])
    return Part(results, key, save)


def _fits(old: Results, new: Results) -> bool:
    same = all(old.get(name) == new[name] for name in SETTINGS)
    return same and "parts" in old and machine.same(old["machine"], new["machine"])
