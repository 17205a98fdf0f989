"""A model as a recipe names it: text, or a mapping of its parts."""

from __future__ import annotations

import os
from typing import Any

from submerge.recipe._problems import KeyPath, Report, show

__all__ = ["RENAME", "add_adapter", "read_spec"]

RENAME = "a folder with a '+' in its name must be renamed"
"""What else to do where two adapters seem to be named."""


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
        hint = f"merge one of them first, or both by merge_method: cat, which adds their updates; {RENAME}"
        report.add(f"more than one adapter on a model: {show(raw)}", path, hint)
        return None
    for part in parts:
        name, at, revision = part.partition("@")
        if not part.strip() or (at and (not name or not revision or "@" in revision)):
            hint = "write 'org/name@revision', 'model+adapter', or both"
            report.add(f"cannot read the model {show(raw)}", path, hint)
            return None
    return "+".join(_without_revision(part, path, report) for part in parts) if report.lenient else raw


def _without_revision(spec: str, path: KeyPath, report: Report) -> str:
    """Return a spec, of a local path without the revision that mergekit asks nobody for."""
    name, at, revision = spec.partition("@")
    if not at or not os.path.exists(name) or os.path.exists(spec):  # a folder may be called a@b
        return spec
    report.add_ignored(f"{name} is a local path, which has no revision {show(revision)}", path)
    return name


def add_adapter(spec: str, raw: Any, path: KeyPath, report: Report) -> str | None:
    """Return `model+adapter` for a model and its `lora`."""
    adapter = read_spec(raw, path, report)
    if adapter is None:
        return None
    if "+" in spec or "+" in adapter:
        what = f"more than one adapter on a model: {show(f'{spec}+{adapter}')}"
        report.add(what, path, f"keep one; {RENAME}")
        return None
    return f"{spec}+{adapter}"


def _spec_mapping(raw: dict[str, Any], path: KeyPath, report: Report) -> str | None:
    """Return a model that is written as `{path:, revision:, lora:}`, or as mergekit's `{model: …, lora:}`."""
    if raw.get("override_architecture") is not None:
        hint = "Submerge goes by the files' tensor names; remove the key"
        what = "'override_architecture' is not supported"
        report.add_ignored(what, (*path, "override_architecture"), hint)
    names = ("model",) if "model" in raw else ("path", "revision")
    others = {key: value for key, value in raw.items() if key not in ("lora", "override_architecture")}
    report.check_keys(others, names, path)
    if "model" in raw:
        spec = read_spec(raw["model"], (*path, "model"), report)
    else:
        spec = _path_and_revision(raw, path, report)
    if spec is None or raw.get("lora") is None:
        return spec
    return add_adapter(spec, raw["lora"], (*path, "lora"), report)


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
