"""An option of a merge method: its type, default, range and meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, Literal

__all__ = ["REQUIRED", "Option"]


class _Required:
    """The default of an option that the recipe must give."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()
"""The default of an option that has none: the recipe must give it."""

FACTOR = ("lambda", "scale")
"""What papers call the factor on the merged update: an option of one name may be written as the other."""


@dataclass(frozen=True)
class Option:
    """One parameter of a method: its type, default, range and meaning.

    Attributes:
        name: as the recipe writes it.
        kind: `float`, `int`, `bool` or `str`.
        default: a value, or `REQUIRED`.
        help: its meaning, in half a sentence.
        scope: `"shared"`, one value for a tensor, or `"model"`, one for each model.
        low: the least number, inclusive.
        high: the largest number, inclusive.
        choices: the words that are allowed; empty for any text.
        tune: whether users usually must tune it.
        word: may stand in a number's place (`auto`).
        single: it says something about the entire model, and has one value for all tensors: no filter, no
            gradient.

    Examples:
        >>> from submerge.methods import Option
        >>> density = Option("density", float, 1.0, "share of the entries kept", scope="model", low=0, high=1)
        >>> density.check("2e-1")
        0.2
        >>> density.check(2)
        Traceback (most recent call last):
        ValueError: density must lie in [0, 1]; found 2
    """

    name: str
    kind: type[float] | type[int] | type[bool] | type[str]
    default: Any
    help: str
    scope: Literal["shared", "model"] = "shared"
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    tune: bool = False
    word: str = ""
    single: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that may be written for it: `lambda_`, too, for Python has its own use for `lambda`."""
        both = FACTOR if self.name in FACTOR and self.scope == "shared" else ()
        return tuple(
            dict.fromkeys(
                spelled
                for name in (self.name, *both)
                for spelled in (name, f"{name}_" if iskeyword(name) else name)
            )
        )

    def check(self, value: Any) -> Any:
        """Return `value` in the option's type; raise `ValueError` that says what is allowed."""
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{self.name} must be true or false, not {value!r}")
            return value
        if self.kind is str:
            if self.choices and value not in self.choices:
                raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}; found {value!r}")
            return str(value)
        if self.word and value == self.word:
            return self.word
        wanted = f"a number or {self.word}" if self.word else "a number"
        if isinstance(value, bool):
            raise ValueError(f"{self.name} must be {wanted}, not {value!r}")
        try:
            number = float(value)  # YAML reads 1e-5 as a string
        except (TypeError, ValueError):
            raise ValueError(f"{self.name} must be {wanted}, not {value!r}") from None
        if self.kind is int and not number.is_integer():
            raise ValueError(f"{self.name} must be a whole number, not {value!r}")
        if not math.isfinite(number) and math.isinf(self.high - self.low):
            raise ValueError(f"{self.name} must be a finite number; found {value!r}")
        if not self.low <= number <= self.high:  # nor NaN
            raise ValueError(f"{self.name} must lie in [{self.low:g}, {self.high:g}]; found {value!r}")
        return int(number) if self.kind is int else number
