"""One calibration: the guard, what is learned after it, and what is measured at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from submerge.calibrate._descent import Descent
from submerge.calibrate._guard import first_curve, rising
from submerge.calibrate._measurement import BatchCounter, Measurement
from submerge.calibrate._null_space import matrix_of
from submerge.calibrate._null_space_results import NullSpaceCurve, NullSpaceMatrix
from submerge.calibrate._objectives import OBJECTIVES
from submerge.calibrate._options import LearnOptions, Step
from submerge.calibrate._parametrisation import Parametrisation
from submerge.errors import few

__all__ = ["CalibrationRun", "renamed"]

Measured = TypeVar("Measured", NullSpaceMatrix, NullSpaceCurve)


class CalibrationRun:
    """One calibration of a model with its adapters: the guard, and what is learned after it."""

    def __init__(
        self,
        measurement: Measurement,
        options: LearnOptions,
        progress: Callable[[Step], None] = lambda _: None,
    ) -> None:
        self.measurement, self.options, self.names = measurement, options, measurement.names
        self._progress = progress
        own = [measurement.data[name] for name in self.names]
        objective = OBJECTIVES[options.objective](measurement.adapters, measurement.factors())
        self.curve = first_curve(measurement, own, self._measuring)
        self._rising = rising(self.curve) if objective.guarded else frozenset()
        self.kept = self._rising if options.where_rising == "keep" else frozenset()
        self.steps = options.steps if len(self.kept) < len(self.names) else 0
        self.coefficients = Parametrisation(
            measurement.adapters.units, options.parametrisation, options.initial, self.kept
        )
        self.descent = Descent(objective, self.coefficients, own, options)

    @property
    def unreached(self) -> list[str]:
        """The modules that no gradient has reached; none where no gradient was asked for."""
        return self.coefficients.unreached if self.steps else []

    def learn(self) -> None:
        """Take all steps."""
        self.descent.run(self.steps, self._progress)

    @torch.no_grad()
    def matrix(self) -> NullSpaceMatrix:
        """Return the ratio of all data in the model as it is merged now."""
        counter = BatchCounter(self._measuring, sum(map(len, self.measurement.data.values())))
        return matrix_of(self.measurement, self.coefficients.scales(len(self.names)), counter)

    def _measuring(self, number: int, total: int) -> None:
        self._progress(Step(number, total, measuring=True))

    def warnings(self, matrix: NullSpaceMatrix) -> Iterator[str]:
        """Yield what to know before the coefficients are used, with the ratios that came out at the end."""
        values = zip(matrix.modules, matrix.values, strict=True)
        if unseen := [name for name, of_module in values if of_module.isnan().all()]:
            yield f"no input reached {few(unseen)}, which have no ratio"
        if self._rising:
            yield from self.curve.warnings
        if self.options.steps and not self.steps:
            yield "no adapter's ω falls with λ, so that no step was made: all coefficients are initial ones"
        if self.steps and not self.coefficients.reached:
            yield "no coefficient acts on the inputs of the hooked modules: hook later ones"


def renamed(measured: Measured, names: Mapping[str, str]) -> Measured:
    """Return a matrix or a curve with other names of its modules."""
    return replace(measured, modules=tuple(names[path] for path in measured.modules))
