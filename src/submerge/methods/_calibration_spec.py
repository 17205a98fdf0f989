"""What of a method is learned from unlabelled inputs before a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["CalibrationSettings", "CalibrationSpec"]

CalibrationSettings: TypeAlias = Callable[[Mapping[str, Any], bool], dict[str, Any]]
"""Maps the single options that a recipe gives, and whether the base is a model of images alone, to the
arguments of `submerge.learn_coefficients`; refuses impossible ones with `RequestError`."""


@dataclass(frozen=True)
class CalibrationSpec:
    """What of a method is learned from unlabelled inputs before a merge.

    A recipe that neither names a file of coefficients nor gives a `weight` has `data` in each entry, from
    which the `weight` of each model is learned for each module.

    Attributes:
        settings: the arguments of `submerge.learn_coefficients`, with `initial` among them: the value that
            weights have where calibration does not reach.

    Examples:
        >>> from submerge.methods import METHODS
        >>> calibration = METHODS["nsc"].calibration
        >>> calibration.settings({"steps": 20}, False)["steps"]
        20
    """

    settings: CalibrationSettings
