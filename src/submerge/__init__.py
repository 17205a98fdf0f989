"""Submerge: merge fine-tuned models of one base, without training.

`merge(recipe, out)` writes a checkpoint or an adapter, `plan(recipe)` says beforehand what it will do,
`merge_state_dicts(states, ...)` and `merge_adapters(peft_model, ...)` merge in memory,
`extract_lora(model, out, base=...)` makes an adapter of a fine-tune, and `verify(folder)` checks a result.
`load(folder)` gives the model of a merge that finds out the tasks of its inputs (`merge_method: mass`),
and `load_processor(folder)` the processor of a model that was composed of several modalities' models.
`null_space_ratio(model, adapters, data)` says which adapter knows which inputs,
and `learn_coefficients(model, adapters, data)` how strongly each should act in a merge.
`methods.METHODS` are all methods by name, and `methods.find_method(name)` is one of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from submerge._version import __version__
from submerge.errors import Problem, RequestError, SubmergeError, WorkError

if TYPE_CHECKING:
    from submerge import methods
    from submerge.calibrate import (
        Calibration,
        NullSpaceCurve,
        NullSpaceMatrix,
        learn_coefficients,
        null_space_curve,
        null_space_ratio,
    )
    from submerge.engine import (
        MergePlan,
        MergeReport,
        Settings,
        VerifyReport,
        extract_lora,
        merge,
        merge_adapters,
        merge_state_dicts,
        verify,
    )
    from submerge.engine import make_plan as plan
    from submerge.recipe import Recipe, load_recipe
    from submerge.serving import load, load_processor

__all__ = [
    "Calibration",
    "MergePlan",
    "MergeReport",
    "NullSpaceCurve",
    "NullSpaceMatrix",
    "Problem",
    "Recipe",
    "RequestError",
    "Settings",
    "SubmergeError",
    "VerifyReport",
    "WorkError",
    "__version__",
    "extract_lora",
    "learn_coefficients",
    "load",
    "load_processor",
    "load_recipe",
    "merge",
    "merge_adapters",
    "merge_state_dicts",
    "methods",
    "null_space_curve",
    "null_space_ratio",
    "plan",
    "verify",
]

_ENGINE = {
    "MergePlan",
    "MergeReport",
    "Settings",
    "VerifyReport",
    "extract_lora",
    "merge",
    "merge_adapters",
    "merge_state_dicts",
    "verify",
}
_CALIBRATE = {
    "Calibration",
    "NullSpaceCurve",
    "NullSpaceMatrix",
    "learn_coefficients",
    "null_space_curve",
    "null_space_ratio",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch is not loaded by `import submerge` alone."""
    if name in _ENGINE or name == "plan":
        from submerge import engine

        return getattr(engine, "make_plan" if name == "plan" else name)
    if name in ("Recipe", "load_recipe"):
        from submerge import recipe

        return getattr(recipe, name)
    if name in _CALIBRATE:
        from submerge import calibrate

        return getattr(calibrate, name)
    if name in ("load", "load_processor"):
        from submerge import serving

        return getattr(serving, name)
    if name == "methods":
        return import_module("submerge.methods")
    raise AttributeError(f"module 'submerge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
