"""Whether a merge may be written to a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from submerge.engine.output._folder import REPLACED, SUFFIX
from submerge.engine.plan import MergePlan
from submerge.errors import Problem, RequestError
from submerge.store import MANIFEST

__all__ = ["check_target"]


def check_target(plan: MergePlan, out: Path, overwrite: bool) -> None:
    """Raise `RequestError` if `out` must not be written: it holds something, or is one of the inputs."""
    hint = "choose another folder"
    try:
        target = out.resolve()
        present = target.exists()
        files = [path.name for path in target.iterdir()] if target.is_dir() else []
    except (OSError, RuntimeError) as error:  # a name too long, a closed folder, links in a circle
        reason = getattr(error, "strerror", None) or error
        raise RequestError(Problem(f"the output cannot be looked at ({reason})", str(out), hint)) from error
    problems = []
    places: dict[Path, str] = {}
    for model in plan.models:
        for path in model.places:
            places.setdefault(path.resolve(), model.label)
    for place, label in places.items():
        family = {place, *place.parents}
        if place in target.parents or target in family or target.parent / (target.name + SUFFIX) in family:
            what = f"the output would lie in, or over, the input {label or place}"
            problems.append(Problem(what, str(out), hint))
    if not problems and present and not target.is_dir():
        problems.append(Problem("the output exists and is no folder", str(out), hint))
    elif not problems and target.is_mount():
        what = "the output is a mount point, which cannot take a finished folder's place"
        problems.append(Problem(what, str(out), "name a folder inside it"))
    elif not problems and files:
        problems = (
            _cannot_replace(plan, target, files)
            if overwrite
            else [Problem("the output exists and is not empty", str(out), f"{hint}, or allow --overwrite")]
        )
    if problems:
        raise RequestError(problems)


def _cannot_replace(plan: MergePlan, target: Path, files: Sequence[str]) -> list[Problem]:
    """Return why --overwrite must leave a folder alone: what would be lost may be more than a model."""
    hint = "choose another folder, or remove this one yourself"
    if not any(map(_is_of_a_model, files)):
        return [Problem("the folder to replace holds no model", str(target), hint)]
    if plan.recipe.path is not None and target in plan.recipe.path.resolve().parents:
        return [Problem("the folder to replace holds the recipe", str(target), hint)]
    old = target.with_name(target.name + REPLACED)
    if os.path.lexists(old):
        what = "what an earlier --overwrite set aside is still there"
        return [Problem(what, str(old), "look whether you need it, then remove it")]
    return []


def _is_of_a_model(name: str) -> bool:
    """Return whether models have a file of this name; states, and data, have other safetensors."""
    weights = name.endswith(".safetensors") and "model" in name
    return weights or name in (MANIFEST, "config.json", "adapter_config.json")
