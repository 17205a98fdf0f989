"""The step before a merge whose weights are learned from data: from its plan to one with coefficients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submerge.engine.output import check_unfinished, unfinished_folder
from submerge.engine.plan import MergePlan, make_plan
from submerge.errors import RequestError
from submerge.recipe import COEFFICIENTS, Coefficients, Recipe, parse_coefficients, read_coefficients

if TYPE_CHECKING:
    from submerge.calibrate import Step

__all__ = ["calibrated", "calibration_report", "replanned"]

UNBOUNDED = 1 << 62


def calibrated(
    plan: MergePlan, out: Path, *, resume: bool, progress: Callable[[Step], None] | None
) -> MergePlan:
    """Return the plan with the weights that its recipe's data gives, and the warnings about them.

    With `resume` the coefficients that an interrupted run left are taken, if there are any: whether they are
    of the same recipe and of the same inputs is for the journal to say.
    """
    check_unfinished(unfinished_folder(out))
    left = unfinished_folder(out) / COEFFICIENTS
    coefficients = _left_over(left) if resume else None
    recipe = replace(plan.recipe, calibrates=False, coefficients=coefficients or _learned(plan, progress))
    merged = replanned(plan, recipe)
    return replace(merged, warnings=(*merged.warnings, *calibration_report(merged)["warnings"]))


def replanned(plan: MergePlan, recipe: Recipe) -> MergePlan:
    """Return the plan of a recipe that has what was found before the merge, with the workers as counted."""
    unbounded = replace(plan.settings, max_memory=UNBOUNDED)
    return replace(make_plan(recipe, unbounded, download=True), settings=plan.settings, budget=plan.budget)


def _left_over(path: Path) -> Coefficients | None:
    """Return the coefficients of an interrupted run, or None where it came to none, or they are damaged."""
    try:
        return replace(read_coefficients(path), path="")
    except RequestError:
        return None


def _learned(plan: MergePlan, progress: Callable[[Step], None] | None) -> Coefficients:
    """Return the coefficients that calibration gives, as its file has them."""
    from submerge.calibrate import calibrate_recipe  # here: it loads transformers

    calibration = calibrate_recipe(plan.recipe, device=plan.settings.device, progress=progress)
    return parse_coefficients(calibration.to_json().encode())


def calibration_report(plan: MergePlan) -> dict[str, Any]:
    """Return what calibration says of itself: warnings, the loss before and after it, its steps and cost."""
    assert plan.recipe.coefficients is not None
    content = json.loads(plan.recipe.coefficients.text)
    loss = content.get("loss") or [None]
    return {
        "loss": [loss[0], loss[-1]],
        "steps": len(loss) - 1,
        "seconds": content.get("seconds"),
        "peak_memory_bytes": content.get("peak_memory_bytes"),
        "unreached": len(content.get("unreached", ())),
        "warnings": list(content.get("warnings", ())),
    }
