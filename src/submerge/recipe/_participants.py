"""Which of a recipe's models the method sees, and whether they are as many and as complete as it needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from submerge.methods import REQUIRED, Method
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._problems import KeyPath, Report, listed
from submerge.recipe._rules import Rule, Setting

__all__ = ["check_participants", "find_participants"]


def find_participants(
    method: Method, models: list[ModelEntry], base: str | None, top: Mapping[str, Setting], report: Report
) -> tuple[ModelEntry, ...]:
    """Return the models that the method sees, in its order.

    A method that merges updates sees every model but the base. One that takes the base as a model
    sees it first, also where it is not listed, unless it would lack an option that must be given.
    """
    if base is None:
        return tuple(models)
    base_entries = [entry for entry in models if same_model(entry.model) == same_model(base)]
    others = tuple(entry for entry in models if same_model(entry.model) != same_model(base))
    if method.origin != "zero":
        return others or _base_alone(method, base_entries, top, report)
    if not method.base_is_model:
        return tuple(models)
    if not base_entries:
        unlisted = ModelEntry(base, {}, report.where(("base_model",)))
        base_entries = [] if _lacking(method, unlisted, top) and not method.base_required else [unlisted]
    return (*base_entries, *others)


def _base_alone(
    method: Method, listed: list[ModelEntry], top: Mapping[str, Setting], report: Report
) -> tuple[ModelEntry, ...]:
    """Return the base as the one model that is merged, where it is as by mergekit; else nothing.

    Its update is zero, whatever its weight, and the result is a copy of it: so an adapter becomes a model.
    """
    any_number = method.min_models <= 1 and method.max_models is None
    if not listed or not report.lenient or method.origin != "base" or not any_number:
        return ()
    what = f"{method.name} merges no model besides the base, and the result is a copy of it"
    report.warn(what, ("merge_method",))
    zero = Setting((Rule(0.0, None, listed[0].where),), listed[0].where)
    unnamed = dict.fromkeys(_lacking(method, listed[0], top), zero)
    return (replace(listed[0], parameters={**listed[0].parameters, **unnamed}),)


def _lacking(method: Method, entry: ModelEntry, top: Mapping[str, Setting]) -> list[str]:
    """Return the options that must be given for each model and that nobody gives for this one."""
    return [
        option.name
        for option in method.options
        if option.scope == "model"
        and option.default is REQUIRED
        and option.name not in entry.parameters
        and option.name not in top
    ]


def check_participants(
    method: Method,
    participants: tuple[ModelEntry, ...],
    models: list[ModelEntry],
    top: Mapping[str, Setting],
    report: Report,
    *,
    elsewhere: Collection[str] = (),
    path: KeyPath = ("models",),
) -> None:
    """Note what participants lack, and a number of them that the method does not merge.

    Options that come from `elsewhere` than the parameters are not missing there. `path` is where the models
    are listed.
    """
    _check_options(method, participants, models, top, report, elsewhere, path)
    _check_number(method, len(participants), len(models), report, path)


def _check_options(
    method: Method,
    participants: tuple[ModelEntry, ...],
    models: list[ModelEntry],
    top: Mapping[str, Setting],
    report: Report,
    elsewhere: Collection[str],
    models_path: KeyPath,
) -> None:
    """Note the options that must be given for each participant and that one of them lacks."""
    places = {id(entry): (*models_path, i) for i, entry in enumerate(models)}
    for entry in participants:
        path: KeyPath = places.get(id(entry), ("base_model",))
        missing = [
            name
            for name in _lacking(method, entry, top)
            if name not in elsewhere
            and not report.has((*path, "parameters", name))
            and not report.has(("parameters", name))
        ]
        if missing:
            noun = "parameter" if len(missing) == 1 else "parameters"
            hint = "give each model its own under 'parameters', or all of them one at the top level"
            report.add(f"{entry.model} lacks the {noun} {listed(missing)}", path, hint)


def _check_number(method: Method, count: int, listed_count: int, report: Report, path: KeyPath) -> None:
    """Note a number of participants that the method does not merge."""
    low, high = method.min_models, method.max_models
    if low <= count and (high is None or count <= high):
        return
    allowed = f"exactly {low}" if low == high else f"at least {low}" if count < low else f"at most {high}"
    noun = "model" if (high if low == high or count > low else low) == 1 else "models"
    beside = " besides the base" if method.origin == "base" else ""
    hint = ""
    if beside and listed_count > count:
        hint = "a base that is listed under 'models' does not count"
    elif count > listed_count:
        hint = "the base is one of them, though it is not listed under 'models'"
    report.add(f"{method.name} merges {allowed} {noun}{beside}; found {count}", path, hint)
