"""The entries of `models`: what each names, and which of them the method sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from submerge.methods import REQUIRED, Method
from submerge.recipe._parameters import read_parameters
from submerge.recipe._problems import KeyPath, Report, listed, show
from submerge.recipe._recipe import ModelEntry, same_model
from submerge.recipe._rules import Setting
from submerge.recipe._schema import ABSENT_KEYS, ENTRY_KEYS
from submerge.recipe._tasks import check_names, read_task

__all__ = ["check_participants", "find_participants", "read_models", "read_spec"]


def read_models(
    raw: Any, method: Method | None, methods: Mapping[str, Method], report: Report
) -> list[ModelEntry] | None:
    """Return the entries of `models`, as far as they could be read; None where one could not."""
    path: KeyPath = ("models",)
    if not isinstance(raw, list) or not raw:
        what = "'models' is empty" if raw in (None, [], {}) else f"'models' is a list, not {show(raw)}"
        report.add(what, path, "write '- model: …', once for each model")
        return None
    entries = [_entry(item, (*path, i), method, methods, report) for i, item in enumerate(raw)]
    readable = [entry for entry in entries if entry is not None]
    check_names(readable, report)
    return readable if len(readable) == len(entries) else None


def _entry(
    raw: Any, path: KeyPath, method: Method | None, methods: Mapping[str, Method], report: Report
) -> ModelEntry | None:
    if not isinstance(raw, dict):
        hint = f"write '- model: {raw}'" if isinstance(raw, str) else "write '- model: …'"
        report.add(f"an entry of 'models' is a mapping, not {show(raw)}", path, hint)
        return None
    for key in raw:
        if key in ABSENT_KEYS:
            report.add(f"'{key}' is not supported", (*path, key), ABSENT_KEYS[key])
        elif key not in ENTRY_KEYS:
            report.unknown("key", key, ENTRY_KEYS, (*path, key))
    parameters = read_parameters(
        raw.get("parameters"), (*path, "parameters"), method, methods, report, of_model=True
    )
    if "model" not in raw:
        report.add("this entry names no model", path, "add 'model: …'")
        return None
    spec = read_spec(raw["model"], (*path, "model"), report)
    if spec is not None and raw.get("lora") is not None:
        spec = _with_adapter(spec, raw["lora"], (*path, "lora"), report)
    name, head = read_task(raw, path, method, report)
    return None if spec is None else ModelEntry(spec, parameters, report.where(path), name, head)


def read_spec(raw: Any, path: KeyPath, report: Report) -> str | None:
    """Return a model as text: `path`, `org/name[@revision]`, or two with a `+`; also from a mapping."""
    if isinstance(raw, dict):
        return _spec_mapping(raw, path, report)
    if not isinstance(raw, str) or not raw.strip():
        hint = "put the name in quotes" if isinstance(raw, (int, float)) else "give a folder or a Hub name"
        report.add(f"a model is a folder or a Hub name, not {show(raw)}", path, hint)
        return None
    parts = raw.split("+")
    if len(parts) > 2:
        hint = "merge one of them first; a folder with a '+' in its name must be renamed"
        report.add(f"more than one adapter on a model: {show(raw)}", path, hint)
        return None
    for part in parts:
        name, at, revision = part.partition("@")
        if not part.strip() or (at and (not name or not revision or "@" in revision)):
            hint = "write 'org/name@revision', 'model+adapter', or both"
            report.add(f"cannot read the model {show(raw)}", path, hint)
            return None
    return raw


def _with_adapter(spec: str, raw: Any, path: KeyPath, report: Report) -> str | None:
    """Return `model+adapter` for a model and its `lora`."""
    adapter = read_spec(raw, path, report)
    if adapter is None:
        return None
    if "+" in spec or "+" in adapter:
        report.add(f"more than one adapter on a model: {show(f'{spec}+{adapter}')}", path, "keep one")
        return None
    return f"{spec}+{adapter}"


def _spec_mapping(raw: dict[str, Any], path: KeyPath, report: Report) -> str | None:
    """Return a model that is written as `{path:, revision:, lora:}`, or as mergekit's `{model: …, lora:}`."""
    if raw.get("override_architecture") is not None:
        hint = "Submerge goes by the files' tensor names; remove the key"
        report.add("'override_architecture' is not supported", (*path, "override_architecture"), hint)
        return None
    names = ("model",) if "model" in raw else ("path", "revision")
    for key in raw:
        if key not in (*names, "lora", "override_architecture"):
            report.unknown("key", key, names, (*path, key))
    if "model" in raw:
        spec = read_spec(raw["model"], (*path, "model"), report)
    else:
        spec = _path_and_revision(raw, path, report)
    if spec is None or raw.get("lora") is None:
        return spec
    return _with_adapter(spec, raw["lora"], (*path, "lora"), report)


def _path_and_revision(raw: dict[str, Any], path: KeyPath, report: Report) -> str | None:
    name, revision = raw.get("path"), raw.get("revision")
    if not isinstance(name, str) or "@" in name:
        hint = "write {path: org/name, revision: main}"
        report.add("a model written as a mapping needs a 'path'", path, hint)
        return None
    if revision is not None and not isinstance(revision, str):
        report.add(f"a revision is text, not {show(revision)}", (*path, "revision"), "put it in quotes")
        return None
    return read_spec(name if revision is None else f"{name}@{revision}", path, report)


def find_participants(
    method: Method, models: list[ModelEntry], base: str | None, top: Mapping[str, Setting], where: str
) -> tuple[ModelEntry, ...]:
    """Return the models that the method sees, in its order; `where` is the line of `base_model`.

    A method that merges updates sees every model but the base. One that takes the base as a model
    sees it first, also where it is not listed, unless it would lack an option that must be given.
    """
    if base is None:
        return tuple(models)
    base_entries = [entry for entry in models if same_model(entry.model) == same_model(base)]
    others = tuple(entry for entry in models if same_model(entry.model) != same_model(base))
    if method.origin != "zero":
        return others
    if not method.base_is_model:
        return tuple(models)
    if not base_entries:
        unlisted = ModelEntry(base, {}, where)
        base_entries = [] if _lacking(method, unlisted, top) and not method.base_required else [unlisted]
    return (*base_entries, *others)


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
) -> None:
    """Note what participants lack, and a number of them that the method does not merge."""
    _check_options(method, participants, models, top, report)
    _check_number(method, len(participants), len(models), report)


def _check_options(
    method: Method,
    participants: tuple[ModelEntry, ...],
    models: list[ModelEntry],
    top: Mapping[str, Setting],
    report: Report,
) -> None:
    """Note the options that must be given for each participant and that one of them lacks."""
    places = {id(entry): ("models", i) for i, entry in enumerate(models)}
    for entry in participants:
        path: KeyPath = places.get(id(entry), ("base_model",))
        missing = [
            name
            for name in _lacking(method, entry, top)
            if not report.has((*path, "parameters", name)) and not report.has(("parameters", name))
        ]
        if missing:
            noun = "parameter" if len(missing) == 1 else "parameters"
            hint = "give each model its own under 'parameters', or all of them one at the top level"
            report.add(f"{entry.model} lacks the {noun} {listed(missing)}", path, hint)


def _check_number(method: Method, count: int, listed_count: int, report: Report) -> None:
    """Note a number of participants that the method does not merge."""
    low, high = method.min_models, method.max_models
    if low <= count and (high is None or count <= high):
        return
    allowed = f"exactly {low}" if low == high else f"at least {low}" if count < low else f"at most {high}"
    noun = "model" if (high if low == high or count > low else low) == 1 else "models"
    beside = " besides the base" if method.origin == "base" else ""
    hint = "a base that is listed under 'models' does not count" if beside and listed_count > count else ""
    report.add(f"{method.name} merges {allowed} {noun}{beside}; found {count}", ("models",), hint)
