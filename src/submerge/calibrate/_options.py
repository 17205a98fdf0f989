"""What a calibration is told: how coefficients are learned, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from submerge.arguments import is_finite_number, is_whole_number
from submerge.calibrate._objectives import OBJECTIVES
from submerge.calibrate._parametrisation import PARAMETRISATIONS
from submerge.errors import Problem, RequestError, did_you_mean

__all__ = ["DTYPES", "LearnOptions", "Step"]

CHOICES = {
    "objective": tuple(OBJECTIVES),
    "parametrisation": PARAMETRISATIONS,
    "where_rising": ("keep", "learn"),
}
WHOLE_NUMBERS = {"steps": 0, "batch_size": 1, "max_length": 1, "seed": 0}
"""The arguments that are whole numbers, and the least of each."""
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


@dataclass(frozen=True)
class Step:
    """How far a calibration is: `number` of `total` steps are done, after which `loss` was measured.

    While the curves, and at the end the ratios, are `measuring`, they are numbers of batches, and the loss is
    NaN. `what` is measured then.
    """

    number: int
    total: int
    loss: float = math.nan
    measuring: bool = False
    what: str = "null-space ratios"


@dataclass(frozen=True)
class LearnOptions:
    """The arguments of `learn_coefficients` that are numbers or words; see there.

    Raises `RequestError` with all of them that are out of range.
    """

    steps: int
    learning_rate: float
    batch_size: int
    hooks: str
    initial: float
    weight_decay: float
    objective: str
    parametrisation: str
    bounds: tuple[float, float] | None
    pull: float
    where_rising: str
    seed: int
    max_length: int
    checkpointing: bool
    dtype: str | None

    def __post_init__(self) -> None:
        if problems := [*self._unknown_words(), *self._wrong_numbers(), *self._wrong_bounds()]:
            raise RequestError(problems)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _unknown_words(self) -> Iterator[Problem]:
        choices = {**CHOICES, **({} if self.dtype is None else {"dtype": tuple(DTYPES)})}
        for name, words in choices.items():
            if (word := getattr(self, name)) not in words:
                hint = did_you_mean(str(word), words)
                yield Problem(f"there is no {name} {word!r}", name, hint)

    def _wrong_numbers(self) -> Iterator[Problem]:
        for name, bound in WHOLE_NUMBERS.items():
            if not is_whole_number(value := getattr(self, name)):
                yield Problem(f"{value!r} is no whole number", name, "give one")
            elif value < bound:
                yield Problem(f"{value} is below {bound}", name, f"give {bound} or more")
        for name in ("weight_decay", "pull"):
            if not (is_finite_number(value := getattr(self, name)) and value >= 0):
                yield Problem(f"{value!r} is no finite number from 0 on", name, "give 0 or more")
        if not (is_finite_number(self.learning_rate) and self.learning_rate > 0):
            yield Problem(f"{self.learning_rate!r} is no rate", "learning_rate", "for example 1e-3")
        if not is_finite_number(self.initial):
            yield Problem(f"{self.initial!r} is no coefficient", "initial", "for example 0.4")

    def _wrong_bounds(self) -> Iterator[Problem]:
        if self.bounds is None or not is_finite_number(self.initial):
            return
        two = isinstance(self.bounds, (tuple, list)) and len(self.bounds) == 2
        if not two or not all(isinstance(bound, (int, float)) for bound in self.bounds):
            hint = "for example (0, 1); where there is none, -math.inf or math.inf"
            yield Problem(f"{self.bounds!r} are no two numbers", "bounds", hint)
            return
        low, high = self.bounds
        if not low <= self.initial <= high:
            what = f"the initial coefficient {self.initial:g} is not in [{low:g}, {high:g}]"
            yield Problem(what, "bounds", "give the lower bound first, and bounds around it, such as (0, 1)")
