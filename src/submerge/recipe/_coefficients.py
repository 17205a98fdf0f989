"""Merge coefficients from a file: the weight of each adapter in each module."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from submerge.arguments import is_finite_number
from submerge.errors import Problem, RequestError
from submerge.store import digest, strict_json

__all__ = [
    "COEFFICIENTS",
    "VERSION",
    "WEIGHT",
    "Coefficient",
    "Coefficients",
    "parse_coefficients",
    "read_coefficients",
]

COEFFICIENTS = "coefficients.json"
"""The file of this content in the folder of a merge."""

VERSION = 1
"""Of the file's form."""
HINT = "`submerge calibrate` writes such a file"
WEIGHT = "weight"
"""The option of which coefficients are values."""
MOST = 5
"""Problems of one file that are told."""

Coefficient: TypeAlias = "float | tuple[float, ...]"
"""A number for all of an update, or one for each of its rank-one units."""


@dataclass(frozen=True)
class Coefficients:
    """Weights of adapters by module, as `submerge calibrate` writes them, or somebody by hand.

    Attributes:
        weights: module → adapter → coefficient. A module is a tensor's name without `.weight`.
        initial: the weight of what the file does not name; None where it does not say.
        text: all of the file, of which a calibration's has more.
        path: as the recipe names it; empty for coefficients that the merge itself has learned.
        digests: of the adapters with which they were learned, by name, as far as the file has some.
        scales: which these adapters put on their updates, by name: one for all, or by the name of each in
            the adapter's file.
        base: the digest of the model on which they were learned; None where the file has none.
    """

    weights: Mapping[str, Mapping[str, Coefficient]]
    initial: float | None = None
    text: str = ""
    path: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)
    base: str | None = None

    @cached_property
    def digest(self) -> str:
        """A digest of the numbers, whatever the file says besides, and however it is written."""
        numbers = {"coefficients": self.weights, "initial": self.initial}
        return digest(json.dumps(numbers, sort_keys=True).encode())

    @cached_property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that the file names, in its order."""
        return tuple(dict.fromkeys(name for of_module in self.weights.values() for name in of_module))

    @property
    def by_unit(self) -> bool:
        """Whether there are numbers by rank-one unit."""
        return any(isinstance(c, tuple) for of_module in self.weights.values() for c in of_module.values())

    def of(self, tensor: str) -> Mapping[str, Coefficient]:
        """Return the coefficients of a tensor's module by adapter; none where the file does not name it.

        Of numbers by rank-one unit, which a module's weight alone has, its bias takes the mean.
        """
        if own := self.weights.get(tensor):
            return own
        module, _, parameter = tensor.rpartition(".")
        of_module = self.weights.get(module) or {}
        if parameter == "weight":
            return of_module
        return {name: fmean(c) if isinstance(c, tuple) else c for name, c in of_module.items()}


def read_coefficients(path: str | Path) -> Coefficients:
    """Return the coefficients in a JSON file: its key `coefficients`, and `version` and `initial` if there.

    Raises `RequestError` with each thing that is wrong with it.

    Examples:
        >>> from pathlib import Path
        >>> from submerge.recipe import read_coefficients
        >>> written = Path("by-hand.json").write_text('{"coefficients": {"layers.0.q": {"chat": 0.3}}}')
        >>> read_coefficients("by-hand.json").of("layers.0.q.weight")
        {'chat': 0.3}
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        what = f"the coefficients cannot be read ({error.strerror})"
        raise RequestError(Problem(what, str(path), "check the path")) from None
    return parse_coefficients(raw, str(path))


def parse_coefficients(raw: bytes, path: str = "") -> Coefficients:
    """Return the coefficients in the JSON of a file; raises `RequestError` as `read_coefficients` does."""
    raw = raw.removeprefix(codecs.BOM_UTF8)  # which some editors put in front
    try:
        content = strict_json(raw)
    except ValueError as error:
        raise RequestError(Problem(f"is not JSON ({error})", path, HINT)) from None
    reader = _Reader(path)
    weights = reader.weights(content)
    initial = reader.initial(content)
    if reader.problems:
        more = len(reader.problems) - MOST
        rest = [Problem(f"{more} more of its values are wrong", path, HINT)] if more > 0 else []
        raise RequestError([*reader.problems[:MOST], *rest])
    base, inputs = content.get("base"), _inputs(content)
    return Coefficients(
        weights,
        initial,
        raw.decode("utf-8"),
        path,
        digests={name: one["adapter"] for name, one in inputs.items() if isinstance(one.get("adapter"), str)},
        scales={name: s for name, one in inputs.items() if (s := _scales(one.get("scales"))) is not None},
        base=base if isinstance(base, str) else None,
    )


class _Reader:
    """Reads the parts of the file, and notes what is wrong with them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[Problem] = []

    def note(self, what: str, hint: str = HINT) -> None:
        self.problems.append(Problem(what, self.where, hint))

    def weights(self, content: Any) -> dict[str, dict[str, Coefficient]]:
        """Return the coefficients by module, named without `.weight`, and by adapter."""
        by_module = content.get("coefficients") if isinstance(content, dict) else None
        if not isinstance(by_module, dict) or not by_module:
            self.note("there is no key 'coefficients' with modules")
            return {}
        if (version := content.get("version", VERSION)) != VERSION:
            self.note(f"is of version {version!r}, and this Submerge reads {VERSION}", "update Submerge")
        for name in by_module:
            if f"{name}.weight" in by_module:
                self.note(f"{name} is there twice, with and without .weight", "keep one of them")
        return {name.removesuffix(".weight"): self._of_module(name, raw) for name, raw in by_module.items()}

    def _of_module(self, module: str, raw: Any) -> dict[str, Coefficient]:
        if not isinstance(raw, dict) or not raw:
            self.note(
                f"{module}: the coefficients of a module are numbers by adapter", 'write {"adapter": 0.4}'
            )
            return {}
        return {adapter: self._coefficient(f"{module}, {adapter}", value) for adapter, value in raw.items()}

    def _coefficient(self, place: str, raw: Any) -> Coefficient:
        if isinstance(raw, list) and raw:
            return tuple(self._number(place, number) for number in raw)
        return self._number(place, raw)

    def _number(self, place: str, raw: Any) -> float:
        number = _finite(raw)
        if number is None:
            what = f"{place}: a coefficient is a finite number, not {json.dumps(raw)[:60]}"
            self.note(what, "calibrate again, or mend it")
        return math.nan if number is None else number

    def initial(self, content: Any) -> float | None:
        """Return the weight of what is not named."""
        raw = content.get("initial") if isinstance(content, dict) else None
        return None if raw is None else self._number("initial", raw)


def _inputs(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what a calibration's file says, by adapter, of what they were learned from."""
    inputs = content.get("inputs")
    entries = inputs.items() if isinstance(inputs, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


def _scales(raw: Any) -> float | dict[str, float] | None:
    """Return an adapter's scales as a calibration's file has them; None where it has none."""
    if not isinstance(raw, dict):
        return _finite(raw)
    return {name: scale for name, value in raw.items() if (scale := _finite(value)) is not None}


def _finite(raw: Any) -> float | None:
    """Return a number of JSON as a float, or None where it is none, or has no finite value."""
    return float(raw) if is_finite_number(raw) else None
