"""Where the second moments of a recipe come from: a folder of them, or the models' data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from submerge.methods import Method, methods_with
from submerge.recipe._model_entry import ModelEntry
from submerge.recipe._parameters import single_values
from submerge.recipe._problems import Report
from submerge.recipe._rules import Setting
from submerge.recipe._task_folder import TaskFolder, read_task_folder
from submerge.recipe._tasks import check_file_names

__all__ = ["check_moments", "read_moments_key"]


def read_moments_key(raw: Any, method: Method | None, report: Report) -> TaskFolder | None:
    """Return the folder of moments that a recipe names; None where it names none, or on a problem."""
    folder = read_task_folder(raw, "moments", report)
    if folder is None or method is None or method.moments:
        return folder
    hint = f"merge by {methods_with(lambda m: m.moments)}, or remove the key"
    report.add(f"{method.name} has no use for moments", ("moments",), hint)
    return None


def check_moments(
    method: Method,
    models: Sequence[ModelEntry],
    base: str | None,
    top: Mapping[str, Setting],
    folder: TaskFolder | None,
    report: Report,
    *,
    mixes: bool = False,
) -> None:
    """Note models without data, where no moments are given, and data that nothing is collected from.

    `mixes` says that data is read for prototypes, too.
    """
    option = method.option("statistics")
    assert option is not None
    if single_values(method, top).get("statistics", option.default) == "identity":
        hint = "remove it, or choose 'statistics: full'"
        if folder is not None:
            report.add("moments are given, and statistics is identity", ("moments",), hint)
        _note_data(() if mixes else models, "statistics: identity looks at no inputs", hint, report)
        return
    if any(entry.modality for entry in models):
        what = f"{method.name} collects inputs of one model, and a composed model has several"
        report.add(what, ("merge_method",), "take another method, or 'statistics: identity'")
    if not mixes:  # else it was done
        check_file_names(models, report)
    if folder is not None:
        _note_data(
            () if mixes else models, "moments are given, which would be collected from it", "keep one", report
        )
        return
    if base is None and not report.has(("merge_method",)):
        what = f"{method.name} needs a base_model, through which the data of adapters runs"
        report.add(what, ("merge_method",), "add 'base_model: …'")
    hint = "add 'data: …' to its entry, or 'moments: folder' to the recipe (or 'statistics: identity')"
    for i, entry in enumerate(models):
        if entry.data is None and not report.has(("models", i, "data")):
            report.add(f"{entry.model} has no data to collect moments from", ("models", i), hint)


def _note_data(models: Sequence[ModelEntry], why: str, hint: str, report: Report) -> None:
    for i, entry in enumerate(models):
        if entry.data is not None:
            report.add(f"'data' is given, and {why}", ("models", i, "data"), hint)
