"""Where the weights of a recipe come from: its parameters, a file of coefficients, or calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from submerge.errors import RequestError
from submerge.methods import Method, methods_with
from submerge.recipe._coefficients import WEIGHT, Coefficients, read_coefficients
from submerge.recipe._model_entry import ModelEntry
from submerge.recipe._problems import KeyPath, Report, listed, show
from submerge.recipe._rules import Setting
from submerge.recipe._tasks import check_distinct

__all__ = ["check_weights", "read_coefficients_key"]


def read_coefficients_key(raw: Any, method: Method | None, report: Report) -> Coefficients | None:
    """Return the coefficients of the file that a recipe names; None where it names none, or on a problem."""
    path: KeyPath = ("coefficients",)
    if raw is None:
        return None
    if not isinstance(raw, str):
        report.add(
            f"coefficients are in a file, and not {show(raw)}", path, "name it: 'coefficients: file.json'"
        )
        return None
    option = method.option(WEIGHT) if method else None
    if method is not None and (option is None or option.scope != "model"):
        report.add(
            f"{method.name} has no weight of each model", path, "coefficients are weights: choose ties, say"
        )
        return None
    try:
        coefficients = read_coefficients(raw)
    except RequestError as error:
        for problem in error.problems:
            report.add(f"{problem.where}: {problem.what}", path, problem.hint)
        return None
    if method is not None and coefficients.by_unit and method.calibration is None:
        what = f"{raw} has numbers for rank-one units, and {method.name} has one weight for an update"
        hint = f"merge by {methods_with(lambda m: m.calibration)}, or calibrate with another parametrisation"
        report.add(what, path, hint)
    return coefficients


def check_weights(
    method: Method,
    participants: Sequence[ModelEntry],
    models: Sequence[ModelEntry],
    top: Mapping[str, Setting],
    coefficients: Coefficients | None,
    report: Report,
    *,
    mixes: bool = False,
) -> bool:
    """Note weights that are given twice, or not at all; return whether they are in the parameters.

    `mixes` says that data is read for prototypes, too.
    """
    paths: dict[int, KeyPath] = {id(entry): ("models", i) for i, entry in enumerate(models)}
    places = {id(entry): paths.get(id(entry), ("base_model",)) for entry in participants}
    given: list[KeyPath] = [("parameters", WEIGHT)] if WEIGHT in top else []
    given += [(*places[id(e)], "parameters", WEIGHT) for e in participants if WEIGHT in e.parameters]
    if coefficients is not None:
        for path in given:
            what = f"'{WEIGHT}' is given, and so is a file of coefficients, which are weights"
            report.add(what, path, "keep one of them")
        _check_names(participants, coefficients, places, report)
        if method.calibration is not None and not mixes:
            _note_data(participants, places, "a file of coefficients", report)
        return False
    if method.calibration is not None and not given:
        _check_data(participants, places, report)
        return False
    if method.calibration is not None and not mixes:
        _note_data(participants, places, f"'{WEIGHT}'", report)
    return True


def _note_data(
    participants: Sequence[ModelEntry], places: Mapping[int, KeyPath], given: str, report: Report
) -> None:
    """Note data from which nothing would be learned, as what would be is given."""
    for entry in participants:
        if entry.data is not None:
            what = f"'data' is given, and so is {given}, which would be learned from it"
            report.add(what, (*places[id(entry)], "data"), "keep one")


def _check_data(participants: Sequence[ModelEntry], places: Mapping[int, KeyPath], report: Report) -> None:
    """Note models without data, and names that two have."""
    hint = "add 'data: …' to its entry, or 'coefficients: file.json' to the recipe (or a 'weight' by hand)"
    for entry in participants:
        path = places[id(entry)]
        if entry.data is None and not report.has((*path, "data")):
            report.add(f"{entry.model} has no data to learn its weights from", path, hint)
    check_distinct(participants, report)


def _check_names(
    participants: Sequence[ModelEntry],
    coefficients: Coefficients,
    places: Mapping[int, KeyPath],
    report: Report,
) -> None:
    """Note models of which the file has no coefficients, and names that two have."""
    if not check_distinct(participants, report):
        return
    for entry in participants:
        if entry.adapter_name not in coefficients.adapters:
            what = f"{coefficients.path} has no coefficients of '{entry.adapter_name}'"
            hint = f"it has {listed(coefficients.adapters)}: say which with 'name: …'"
            report.add(what, places[id(entry)], hint)
