"""The models that a recipe names, opened: each once, and adapters laid over their bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from submerge.engine.plan.inputs._inputs import Inputs, names_no_model
from submerge.engine.plan.inputs._opener import Opener
from submerge.engine.plan.inputs._settings import Settings
from submerge.engine.plan.inputs._specialists import open_specialists
from submerge.errors import RequestError
from submerge.names import may_be_fused
from submerge.recipe import Coefficients, Recipe, same_model
from submerge.store import Adapter, Checkpoint, UnlikeTablesError, saved_table, side_by_side, split_spec

__all__ = ["open_models"]

NO_BASE = ""
"""The spec of the base that adapters alone have in common: names and shapes without values."""


def open_models(recipe: Recipe, settings: Settings, *, download: bool) -> Inputs:
    """Return the models that a recipe names, each opened once.

    Where an adapter is to come out of adapters alone, no base is opened: the reference is then a model
    without values. Raises `RequestError` with everything that is wrong.
    """
    opener = Opener(recipe, settings, download)
    if recipe.composed:
        return open_specialists(recipe, opener)
    specs = list(dict.fromkeys([*([recipe.base] if recipe.base else []), *(e.model for e in recipe.models)]))
    if recipe.output.form == "adapter":
        alone = _adapters_alone(recipe, specs, opener)
        if alone is not None:
            return replace(Inputs.of(recipe, alone), told_config=_told_config(alone, recipe, opener))
        if not opener.problems and recipe.base is None:
            what = "the base's values are needed to make an adapter"
            opener.note(what, recipe.models[0].where, "add 'base_model: …'")
    opened = {spec: opener.model(spec) for spec in specs}
    tokenizer = opener.tokenizer() if names_no_model(recipe) else None
    if opener.problems:
        raise RequestError(list(dict.fromkeys(opener.problems)))
    models = {spec: model for spec, model in opened.items() if model is not None}
    return Inputs.of(recipe, models, tokenizer)


def _adapters_alone(recipe: Recipe, specs: list[str], opener: Opener) -> dict[str, Checkpoint] | None:
    """Return the adapters over a base without values, or None where that is not all that there is."""
    adapters = _adapters_of_one_base(recipe, specs, opener)
    if not adapters or (recipe.base and _needs_base(recipe, list(adapters.values()), opener)):
        return None
    try:
        valueless, *laid = side_by_side(list(adapters.values()))
    except UnlikeTablesError:
        if recipe.base is None:
            raise
        return None
    models = dict(zip(adapters, laid, strict=True))
    if recipe.base is None:
        return {NO_BASE: valueless, **models}
    place = opener.root / recipe.base  # not opened, and yet no place for an output
    base = replace(valueless, label=recipe.base, path=place if place.exists() else valueless.path)
    return {spec: models.get(spec, base) for spec in specs}


def _told_config(
    models: Mapping[str, Checkpoint], recipe: Recipe, opener: Opener
) -> Mapping[str, Any] | None:
    """Return the base's configuration, where it tells how matrices that adapters change are fused."""
    adapters = {spec: model.adapter for spec, model in models.items() if model.adapter is not None}
    names = {name for adapter in adapters.values() for name in adapter.parts}
    told = recipe.parameters.get("fused")
    is_whole = told is not None and all(rule.value == "whole" for rule in told.rules)
    if recipe.method.option("fused") is None or is_whole or not any(map(may_be_fused, names)):
        return None
    return opener.told_config(adapters)


def _adapters_of_one_base(recipe: Recipe, specs: list[str], opener: Opener) -> dict[str, Adapter]:
    """Return the adapters that specs name, or none where there are other models, or several bases."""
    base = None if recipe.base is None else same_model(recipe.base)
    if base and split_spec(base, opener.root)[1]:
        return {}
    adapters: dict[str, Adapter] = {}
    bases = {base} if base else set()
    for spec in specs:
        if same_model(spec) == base:
            continue
        model, adapter_spec = split_spec(spec, opener.root)
        adapter = opener.open(adapter_spec or model, adapter=adapter_spec is not None)
        if not isinstance(adapter, Adapter):
            return {}
        if adapter_spec:
            bases.add(same_model(model))
        adapters[spec] = adapter
    return adapters if len(bases) < 2 else {}


def _needs_base(recipe: Recipe, adapters: Sequence[Adapter], opener: Opener) -> bool:
    """Return whether the base's tensors must be known, or are looked at because they are at hand.

    That is for names of two forms, for updates of its values, for data that runs through it, and for
    coefficients of modules under its names. Tables that adapters saved beside what they trained of them are
    compared with a base on this disk.
    """
    if (
        recipe.calibrates
        or recipe.collects_moments
        or (recipe.coefficients and _names_others(recipe.coefficients, adapters))
    ):
        return True
    forms = {adapter.form for adapter in adapters}
    mixed = "kohya" in forms and len(forms) > 1
    parts = [(adapter, name, part) for adapter in adapters for name, part in adapter.parts.items()]
    is_here = recipe.base in recipe.parts or (opener.root / str(recipe.base)).exists()
    return (
        mixed
        or any(adapter.low_rank(name) is None for adapter, name, _ in parts)
        or (is_here and any(saved_table(part) is not None for _, _, part in parts))
    )


def _names_others(coefficients: Coefficients, adapters: Sequence[Adapter]) -> bool:
    """Return whether coefficients name modules that no adapter changes under this name."""
    changed = {name.rpartition(".")[0] for adapter in adapters for name in adapter.parts}
    return not coefficients.weights.keys() <= changed
