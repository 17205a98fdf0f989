"""Arguments of a function in the place of a recipe, for `merge_state_dicts` and `merge_adapters`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.methods import METHODS

__all__ = ["recipe_of"]


def recipe_of(
    names: Sequence[str],
    has_base: bool,
    method: str,
    dtype: str | None,
    rules: Mapping[str, str] | None,
    seed: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the recipe that the arguments amount to."""
    shared: dict[str, Any] = {}
    own: list[dict[str, Any]] = [{} for _ in names]  # a model may be there twice
    known = METHODS.get(method)
    for name, value in options.items():
        option = known.option(name) if known else None
        by_model = None if option is None or option.scope == "shared" else _by_model(name, value, names)
        if by_model is None:
            shared[name] = value
            continue
        for place, of_model in by_model.items():
            own[place][name] = of_model
    given: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": name, "parameters": one} for name, one in zip(names, own, strict=True)],
        "parameters": shared,
        "base_model": "base" if has_base else None,
        "dtype": dtype,
        "rules": dict(rules) if rules else None,
        "seed": seed,
    }
    return {key: value for key, value in given.items() if value is not None}


def _by_model(name: str, value: Any, models: Sequence[str]) -> dict[int, Any] | None:
    """Return the value for each model, by its place; None where one value is for all of them."""
    if isinstance(value, Mapping) and not {"value", "filter"} & set(value):
        if unknown := [model for model in value if model not in models]:
            raise RequestError(Problem(f"{name} names models that are not there: {unknown}"))
        return {place: value[model] for place, model in enumerate(models) if model in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != len(models):
            raise RequestError(Problem(f"{name} has {len(value)} values for {len(models)} models"))
        return dict(enumerate(value))
    return None
