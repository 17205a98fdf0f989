"""Submerge: merge fine-tuned models of one base, without training.

`merge(recipe, out)` writes a checkpoint or an adapter, `plan(recipe)` says beforehand what it will do,
`merge_state_dicts(states, ...)` and `merge_adapters(peft_model, ...)` merge in memory,
`extract_lora(model, out, base=...)` makes an adapter of a fine-tune, and `verify(folder)` checks a result.
`moe(recipe, out)` makes a mixture of experts, of which `plan_moe(recipe)` says what it will be.
`transplant(model, donor, out)` gives a model the tokenizer of another.
`inspect_updates(recipe)` says how the updates of its models overlap.
`load(folder)` gives the model of a merge that finds out the tasks of its inputs (`merge_method: mass`),
`calibrate_router(folder, data)` lets some inputs of its tasks help it,
and `load_processor(folder)` the processor of a model that was composed of several modalities' models.
`null_space_ratio(model, adapters, data)` says which adapter knows which inputs,
and `learn_coefficients(model, adapters, data)` how strongly each should act in a merge.
`Continual(state)` is a model that grows: tasks are added one at a time, and removed.
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
    from submerge.continual import Continual
    from submerge.engine import (
        Inspection,
        MergePlan,
        MergeReport,
        Settings,
        TransplantReport,
        VerifyReport,
        extract_lora,
        inspect_updates,
        merge,
        merge_adapters,
        merge_state_dicts,
        moe,
        transplant,
        verify,
    )
    from submerge.engine import make_plan as plan
    from submerge.engine import plan_mixture as plan_moe
    from submerge.recipe import Recipe, load_recipe
    from submerge.serving import calibrate_router, load, load_processor

__all__ = [
    "Calibration",
    "Continual",
    "Inspection",
    "MergePlan",
    "MergeReport",
    "NullSpaceCurve",
    "NullSpaceMatrix",
    "Problem",
    "Recipe",
    "RequestError",
    "Settings",
    "SubmergeError",
    "TransplantReport",
    "VerifyReport",
    "WorkError",
    "__version__",
    "calibrate_router",
    "extract_lora",
    "inspect_updates",
    "learn_coefficients",
    "load",
    "load_processor",
    "load_recipe",
    "merge",
    "merge_adapters",
    "merge_state_dicts",
    "methods",
    "moe",
    "null_space_curve",
    "null_space_ratio",
    "plan",
    "plan_moe",
    "transplant",
    "verify",
]

_PUBLIC = {
    "calibrate": (
        "Calibration",
        "NullSpaceCurve",
        "NullSpaceMatrix",
        "learn_coefficients",
        "null_space_curve",
        "null_space_ratio",
    ),
    "continual": ("Continual",),
    "engine": (
        "Inspection",
        "MergePlan",
        "MergeReport",
        "Settings",
        "TransplantReport",
        "VerifyReport",
        "extract_lora",
        "inspect_updates",
        "merge",
        "merge_adapters",
        "merge_state_dicts",
        "moe",
        "plan",
        "plan_moe",
        "transplant",
        "verify",
    ),
    "recipe": ("Recipe", "load_recipe"),
    "serving": ("calibrate_router", "load", "load_processor"),
}
_PACKAGE_OF = {name: package for package, names in _PUBLIC.items() for name in names}
_NAME_THERE = {"plan": "make_plan", "plan_moe": "plan_mixture"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch is not loaded by `import submerge` alone."""
    if name == "methods":
        return import_module("submerge.methods")
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module 'submerge' has no attribute {name!r}")
    return getattr(import_module(f"submerge.{_PACKAGE_OF[name]}"), _NAME_THERE.get(name, name))


def __dir__() -> list[str]:
    return __all__
