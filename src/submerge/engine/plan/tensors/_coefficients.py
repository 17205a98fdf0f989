"""Whether a recipe's coefficients fit its models, and whether weights can be learned from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from submerge.engine.plan.inputs import Inputs, stored_digest
from submerge.engine.plan.tensors._measured_models import other_scale
from submerge.engine.plan.tensors._tensor import TensorPlan
from submerge.errors import Problem, few
from submerge.recipe import Coefficients, Recipe
from submerge.store import DTYPES, Checkpoint

__all__ = ["calibration_bytes", "coefficient_problems", "coefficient_warnings"]

_AGAIN = "calibrate again; or remove 'inputs' from the file, to take its numbers all the same"
FACTORS = 2
"""Bytes held for one of an adapter's file: factors are held in float32, and stored in 16 bits or more."""


def coefficient_problems(recipe: Recipe, inputs: Inputs, tensors: Sequence[TensorPlan]) -> list[Problem]:
    """Return why coefficients do not fit the models, or why none can be learned from them."""
    if recipe.calibrates:
        return _not_adapters(recipe, inputs)
    if recipe.coefficients is None:
        return []
    return [
        *_other_base(recipe, inputs),
        *_other_adapters(recipe, inputs),
        *_unknown_modules(recipe, inputs.reference_model),
        *_unfit_units(inputs, tensors),
    ]


def coefficient_warnings(recipe: Recipe) -> list[str]:
    """Return that a file names adapters beyond the recipe's, or does not tell what it was learned with."""
    coefficients = recipe.coefficients
    if coefficients is None:
        return []
    named = {entry.adapter_name for entry in recipe.participants}
    others = [name for name in coefficients.adapters if name not in named]
    warnings = [f"the coefficients of {few(others)} act on no model of the recipe"] if others else []
    if unknown := _unknown(coefficients, named):
        why = "the file does not tell (earlier versions, and models in memory, left that out)"
        warnings.append(f"whether it was learned with {unknown} was not checked: {why}")
    return [f"{coefficients.path}: {warning}" for warning in warnings]


def _unknown(coefficients: Coefficients, named: Collection[str]) -> str:
    """Return what a calibration's file does not tell of the base and the adapters it was learned with."""
    learned_with = [name for name in coefficients.digests if name in named]
    if not learned_with or not coefficients.path:
        return ""
    scaled = all(name in coefficients.scales for name in learned_with)
    missing = {"this base": coefficients.base is None, "these scales of the adapters": not scaled}
    return " and ".join(what for what, is_missing in missing.items() if is_missing)


def _not_adapters(recipe: Recipe, inputs: Inputs) -> list[Problem]:
    """Return which participants are no adapters, and which lie on another model than the base."""
    assert inputs.base is not None
    base = inputs.models[inputs.base]
    problems = []
    for entry, position in zip(recipe.participants, inputs.participants, strict=True):
        model = inputs.models[position]
        if model.adapter is None:
            what = f"{entry.model} is a whole model, and {recipe.method.name} learns weights of adapters"
            hint = "`submerge extract-lora` makes an adapter of it; or give 'coefficients: file.json'"
            problems.append(Problem(what, entry.where, hint))
        elif model.under is not None and model.under.path != base.path:
            what = f"{entry.model} is an adapter on {model.under.label}, and the base is {base.label}"
            problems.append(Problem(what, entry.where, "learn weights of adapters of one base"))
    return problems


def _other_base(recipe: Recipe, inputs: Inputs) -> list[Problem]:
    """Return that the coefficients were learned on another base, of the same names, if they were.

    One that is not downloaded is not looked at.
    """
    coefficients = recipe.coefficients
    assert coefficients is not None
    if coefficients.base is None or not coefficients.path:
        return []
    base = inputs.reference_model.under or inputs.reference_model
    if (found := stored_digest(base)) is None or found == coefficients.base:
        return []
    what = f"{base.label} is not the model on which {coefficients.path} was learned"
    hint = "calibrate again; or remove 'base' from the file, to take its numbers all the same"
    return [Problem(what, "base_model" if recipe.base else "models", hint)]


def _other_adapters(recipe: Recipe, inputs: Inputs) -> list[Problem]:
    """Return the adapters with the name of one that the coefficients were learned with, and other files."""
    coefficients = recipe.coefficients
    assert coefficients is not None
    problems = []
    for entry, position in zip(recipe.participants, inputs.participants, strict=True):
        adapter = inputs.models[position].adapter
        learned_with = coefficients.digests.get(entry.adapter_name)
        if adapter is None or adapter.pending or learned_with is None or not coefficients.path:
            continue
        if adapter.digest() != learned_with:
            what = f"{entry.model} is not the adapter with which {coefficients.path} was learned"
            problems.append(Problem(what, entry.where, _AGAIN))
        elif scaled := other_scale(adapter, coefficients.scales.get(entry.adapter_name)):
            what = f"{entry.model} {scaled} when {coefficients.path} was learned"
            hint = f"set lora_alpha, alpha_pattern and use_rslora as they were; or {_AGAIN}"
            problems.append(Problem(what, entry.where, hint))
    return problems


def _unknown_modules(recipe: Recipe, reference: Checkpoint) -> list[Problem]:
    """Return that the file names modules which the output does not have, if it does."""
    coefficients = recipe.coefficients
    assert coefficients is not None
    known = {part for name in reference.tensors for part in (name, name.rpartition(".")[0])}
    unknown = [module for module in coefficients.weights if module not in known]
    if not unknown:
        return []
    what = f"no tensor of {reference.label or 'the adapters'} is of the modules {few(unknown)}"
    hint = "the coefficients must be of this base: its modules are called by its tensors, without .weight"
    return [Problem(what, coefficients.path, hint)]


def _unfit_units(inputs: Inputs, tensors: Sequence[TensorPlan]) -> list[Problem]:
    """Return the tensors that have coefficients by rank-one unit, and other factors, or none."""
    problems = []
    for tensor in tensors:
        for member, weight in zip(tensor.inputs, tensor.values.get("weight", ()), strict=False):
            rank = member.rank if tensor.matrix and member.relative else 0
            if isinstance(weight, tuple) and member.patch and rank != len(weight):
                has = f"rank {rank}" if rank else "no factors of it"
                label = inputs.models[member.model].label
                hint = "calibrate with these adapters, or with another parametrisation than unit"
                what = f"there are {len(weight)} coefficients by rank-one unit, and {label} has {has}"
                problems.append(Problem(what, f"tensor {tensor.name}", hint))
    return problems


def calibration_bytes(recipe: Recipe, inputs: Inputs) -> int:
    """Return what passes over data hold at least: the base and the adapters' factors; 0 without passes.

    Activations come on top, which depend on the inputs.
    """
    passes = recipe.calibrates or recipe.collects_moments or recipe.makes_prototypes
    if not passes or inputs.base is None:
        return 0
    base = inputs.models[inputs.base]
    adapters = {model.label: model.adapter for model in inputs.models if model.adapter is not None}
    factors = sum(file.stat().st_size for a in adapters.values() for file in a.files if file.exists())
    stored = (entry for name, entry in base.tensors.items() if name not in base.aliases)
    return sum(DTYPES[e.dtype].nbytes(e.shape) or 0 for e in stored) + FACTORS * factors
