"""Whether the projectors of a recipe's models become one, or their outputs are mixed by prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from submerge.arguments import is_count
from submerge.errors import RequestError
from submerge.methods import Method
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._problems import KeyPath, Report, listed, show
from submerge.recipe._projector_mix import ProjectorMix, projector_options
from submerge.recipe._sections import OutputForm
from submerge.recipe._task_folder import TaskFolder
from submerge.recipe._tasks import check_file_names

__all__ = ["check_projectors", "read_projectors", "read_share"]

_WHERE: KeyPath = ("projectors",)
_HINT = "write 'projectors: merged', 'mixed', or {mix: prototypes, temperature: 0.03}"


def read_projectors(data: Mapping[str, Any], report: Report) -> ProjectorMix | Literal["merged"] | None:
    """Return what a recipe says of projectors; None where it says nothing, or on a problem.

    Who names a folder of prototypes, or a projector that tasks share, wants them mixed.
    """
    raw = data.get("projectors")
    if raw is None:
        entries = data.get("models")
        entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        asked = data.get("prototypes") is not None or any(e.get("share_projector") for e in entries)
        return _read_mix({}, report) if asked else None
    if raw == "merged":
        return "merged"
    if raw == "mixed":
        return _read_mix({}, report)
    if isinstance(raw, dict):
        return _read_mix(raw, report)
    report.add(f"projectors is {show(raw)}", _WHERE, _HINT)
    return None


def _read_mix(raw: Mapping[str, Any], report: Report) -> ProjectorMix | None:
    """Return how projectors are mixed, as a mapping says; None on a problem, which is noted."""
    options = dict(raw)
    if (how := options.pop("mix", "prototypes")) != "prototypes":
        report.add(f"mix is {show(how)}", (*_WHERE, "mix"), "there is 'prototypes'")
    count = options.pop("prototypes", 1)
    if not is_count(count):
        what = f"prototypes is {show(count)}, and must be a whole number ≥ 1"
        report.add(what, (*_WHERE, "prototypes"), "it is the most prototypes that a task has")
    if "module" in options:
        del options["module"]
        report.unknown_key("module", ("mix", "temperature", "pooling"), (*_WHERE, "module"), ours=True)
    try:
        mix = ProjectorMix(projector_options(options), count)
    except RequestError as error:
        for problem in error.problems:
            report.add(problem.what, _WHERE, problem.hint)
    return None if report.has(_WHERE) else mix


def read_share(raw: dict[str, Any], path: KeyPath, report: Report) -> str:
    """Return the task whose projector an entry of `models` shares; empty where it names none."""
    value = raw.get("share_projector")
    if value is None or isinstance(value, str):
        return value or ""
    report.add(f"share_projector is {show(value)}", (*path, "share_projector"), "name another model's task")
    return ""


def check_projectors(
    mix: ProjectorMix | Literal["merged"] | None,
    prototypes: TaskFolder | None,
    method: Method | None,
    models: Sequence[ModelEntry],
    base: str | None,
    form: OutputForm,
    report: Report,
) -> None:
    """Note why the models' projectors cannot be mixed, where that is asked for."""
    if not isinstance(mix, ProjectorMix):
        if mix == "merged":
            _check_merged(prototypes, models, report)
        return
    if method is not None and method.gate:
        what = f"{method.name} has a gate of its own, and so have projectors that are mixed"
        report.add(what, _WHERE, "take a method without one, such as many or ties")
    if any(entry.modality for entry in models):
        what = "a composed model keeps each specialist's projector, and mixes none"
        report.add(what, _WHERE, "remove the key, or 'modality' of the models")
    if form.form == "adapter":
        what = "projectors are mixed, and an adapter has no place for them"
        hint = "write a checkpoint; or `submerge many export`, which writes an adapter with them beside it"
        report.add(what, ("output",), hint)
    if base is None and not report.has(("base_model",)):
        report.add("projectors are mixed in a base, and there is none", _WHERE, "add 'base_model: …'")
    _check_tasks(models, base, prototypes, report)


def _check_merged(prototypes: TaskFolder | None, models: Sequence[ModelEntry], report: Report) -> None:
    """Note what is only of use where projectors are mixed."""
    hint = "write 'projectors: mixed', or remove the key"
    if prototypes is not None:
        report.add("prototypes are given, and the projectors are merged into one", ("prototypes",), hint)
    for place, entry in enumerate(models):
        if entry.share_projector:
            what = f"the projector of {entry.model} is merged with the others, and shares none"
            report.add(what, ("models", place, "share_projector"), hint)


def _check_tasks(
    models: Sequence[ModelEntry], base: str | None, prototypes: TaskFolder | None, report: Report
) -> None:
    """Note too few tasks, tasks whose names no file can have, and tasks without data."""
    tasks = {
        place: entry
        for place, entry in enumerate(models)
        if base is None or same_model(entry.model) != same_model(base)
    }
    names = [entry.adapter_name for entry in tasks.values()]
    if models and len(tasks) < 2:
        report.add("projectors of several models are mixed, and there is one", ("models",), "add another")
    check_file_names(list(tasks.values()), report)
    hint = "add 'data: …' with images, or 'prototypes: folder' to the recipe"
    for place, entry in tasks.items():
        if entry.data is None and prototypes is None and not report.has(("models", place, "data")):
            report.add(f"{entry.model} has no data to make prototypes from", ("models", place), hint)
        _check_share(entry, ("models", place, "share_projector"), names, report)


def _check_share(entry: ModelEntry, path: KeyPath, names: Sequence[str], report: Report) -> None:
    others = [name for name in names if name != entry.adapter_name]
    if entry.share_projector and entry.share_projector not in others:
        what = f"share_projector names {show(entry.share_projector)}, which is no other model"
        report.add(what, path, f"there is {listed(others)}")
