"""A recipe as mergekit reads it, where it can do the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from submerge.recipe._model_entry import same_model
from submerge.recipe._projector_mix import ProjectorMix
from submerge.recipe._recipe import Recipe
from submerge.recipe._rules import Setting
from submerge.recipe._stack import Slice

__all__ = ["to_mergekit"]

_REQUIRED = object()


def _arithmetic(normalize: bool, rescale: bool, **own: float) -> dict[str, Any]:
    """Return the parameters that mergekit's task-arithmetic family has, with its defaults."""
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 1.0, "int8_mask": False}
    return {"weight": _REQUIRED, "density": 1.0, **shared, **own}


_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"weight": _REQUIRED, "normalize": True},
    "slerp": {"t": _REQUIRED},
    "nuslerp": {"weight": _REQUIRED, "nuslerp_row_wise": False, "nuslerp_flatten": True},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "multislerp": {"weight": _REQUIRED, "normalize_weights": True, "eps": 1e-8},
    "nearswap": {"t": _REQUIRED},
    "task_arithmetic": _arithmetic(False, False),
    "ties": _arithmetic(True, False),
    "dare_linear": _arithmetic(False, True),
    "dare_ties": _arithmetic(False, True),
    "breadcrumbs": _arithmetic(False, False, gamma=0.01),
    "breadcrumbs_ties": _arithmetic(False, False, gamma=0.01),
    "della": _arithmetic(True, True, epsilon=0.15),
    "della_linear": _arithmetic(False, True, epsilon=0.15),
    "model_stock": {"filter_wise": False},
    "sce": {"select_topk": 1.0, "int8_mask": False},
    "arcee_fusion": {},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
    "passthrough": {"scale": 1.0},
}
"""The methods and parameters of mergekit 0.1.5, with its defaults."""


def to_mergekit(recipe: Recipe) -> str | None:
    """Return YAML with which mergekit merges as `recipe` says, or None where it cannot.

    Left out are the seed and the section `rules`, which mergekit does not have, and options of ours
    at their defaults. None comes back for a method or an option that mergekit lacks, for an adapter as
    output, for a composed model, for projectors that are mixed, for weights from a file of coefficients, for
    results of other documents, for a donor's tokenizer, for a model that is listed twice (mergekit keys
    parameters by model), for a base that takes no part in a method which merges weights (mergekit would merge
    it), and for a slice without its base among the sources.
    """
    theirs = _PARAMETERS.get(recipe.method.name)
    if (
        theirs is None
        or recipe.composed
        or isinstance(recipe.projectors, ProjectorMix)
        or recipe.coefficients is not None
        or recipe.parts
        or recipe.tokenizer.new_tokens is not None
        or recipe.output.form != "checkpoint"
        or not _same_models(recipe)
    ):
        return None
    top = _top_parameters(recipe, theirs)
    if top is None:
        return None
    named = {same_model(entry.model): entry.model for entry in recipe.models}
    if recipe.base is not None:
        named[same_model(recipe.base)] = recipe.base  # to mergekit 'base/' is not 'base'
    sections = {
        "merge_method": recipe.method.name,
        "base_model": recipe.base,
        **_layout(recipe, named, theirs),
        "parameters": top or None,
        "dtype": recipe.dtype,
        "out_dtype": recipe.out_dtype,
        **_tokenizer(recipe, named),
        "chat_template": recipe.chat_template,
    }
    given = {key: value for key, value in sections.items() if value is not None}
    return yaml.dump(given, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes values in full: mergekit's users do not expect anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _top_parameters(recipe: Recipe, theirs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the top-level parameters as mergekit needs them; None where it lacks an option that is used."""
    parameters: dict[str, Any] = {}
    for option in recipe.method.options:
        setting = recipe.parameters.get(option.name)
        if option.name not in theirs:
            if any(_changes(level.get(option.name), option.default) for level in _levels(recipe)):
                return None
        elif option.default == theirs[option.name] or theirs[option.name] is _REQUIRED:
            if setting is not None:
                parameters[option.name] = setting.written()
        else:  # where the defaults differ, ours is written out
            parameters[option.name] = _complete(setting, option.default)
    return parameters


def _tokenizer(recipe: Recipe, named: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys for the tokenizer, with models as the entries name them."""
    settings, wanted = recipe.tokenizer, recipe.tokenizer_source
    source = named.get(same_model(wanted or ""), wanted)
    if source is not None:  # of model+adapter mergekit would take the model's
        source = source.partition("+")[2] or source
    tokens = {
        text: replace(row, model=named.get(same_model(row.model), row.model))
        for text, row in settings.tokens.items()
    }
    return replace(settings, source=source, tokens=tokens).written()


def _same_models(recipe: Recipe) -> bool:
    """Return whether mergekit would give the method the models that Submerge gives it."""
    if recipe.stack:
        slices = [piece for module in recipe.stack for piece in module.slices]
        return all(piece.base is None or same_model(piece.base) in _listed(piece) for piece in slices)
    specs = [same_model(entry.model) for entry in recipe.models]
    if len(set(specs)) < len(specs):
        return False
    if recipe.base is None or recipe.method.origin != "zero":
        return True
    return same_model(recipe.base) in {same_model(entry.model) for entry in recipe.participants}


def _listed(piece: Slice) -> set[str]:
    return {same_model(source.entry.model) for source in piece.sources}


def _levels(recipe: Recipe) -> Iterator[Mapping[str, Setting]]:
    """Yield the parameters of every place of a recipe."""
    yield recipe.parameters
    yield from (entry.parameters for entry in recipe.models)
    for module in recipe.stack:
        yield module.own
        for piece in module.slices:
            yield piece.own
            yield from (source.entry.parameters for source in piece.sources)


def _layout(recipe: Recipe, named: Mapping[str, str], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is merged, with models by the names in `named` and the parameters that mergekit has."""

    def translated(key: str, value: Any) -> Any:
        if key == "parameters":
            return {name: setting for name, setting in value.items() if name in theirs}
        if key in ("model", "base_model"):
            return named.get(same_model(value), value)
        if isinstance(value, dict):
            return {k: new for k, own in value.items() if (new := translated(k, own)) != {}}
        if key in ("models", "slices", "sources"):
            return [translated("", item) for item in value]
        return value

    return {key: translated(key, value) for key, value in recipe.layout().items()}


def _changes(setting: Setting | None, default: Any) -> bool:
    """Return whether a setting gives any tensor another value than the default."""
    if setting is None:
        return False
    return any(
        point != default
        for rule in setting.rules
        for point in (rule.value if isinstance(rule.value, tuple) else (rule.value,))
    )


def _complete(setting: Setting | None, default: Any) -> Any:
    """Return a setting as written, with `default` where none of its rules holds."""
    if setting is None:
        return default
    written = setting.written()
    if any(rule.filter is None for rule in setting.rules):
        return written
    return [*written, {"value": default}]
