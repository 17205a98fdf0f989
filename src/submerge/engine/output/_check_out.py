"""Whether a merge may be written to a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from submerge.engine.output._folder import REPLACED, SUFFIX
from submerge.engine.plan import MergePlan
from submerge.errors import Problem, RequestError
from submerge.store import MANIFEST

__all__ = ["check_target", "why_taken"]


def _is_of_a_model(name: str) -> bool:
    """Return whether models have a file of this name; states, and data, have other safetensors."""
    weights = name.endswith(".safetensors") and "model" in name
    return weights or name in (MANIFEST, "config.json", "adapter_config.json")


MODEL = ("model", _is_of_a_model)
"""What `--overwrite` of a checkpoint may replace."""


def check_target(plan: MergePlan, out: Path, overwrite: bool) -> None:
    """Raise `RequestError` if `out` must not be written: it holds something, or is one of the inputs."""
    taken = why_taken(out, overwrite=overwrite)
    if problems := [*_over_inputs(plan, out)] or taken or _recipe_inside(plan, out):
        raise RequestError(problems)


def why_taken(
    out: Path, *, overwrite: bool, replaceable: tuple[str, Callable[[str], bool]] = MODEL
) -> list[Problem]:
    """Return why no folder can be made at `out`: something is there that may not, or cannot, be replaced.

    With `overwrite` folders of one kind may be: `replaceable` has the name of the kind, and a test of the
    names of files that only such folders have. Others may hold more than a user thinks of.
    """
    hint = "choose another folder"
    try:
        target = out.resolve()
        files = [path.name for path in target.iterdir()] if target.is_dir() else []
        present, is_mount = target.exists(), target.is_mount()
    except (OSError, RuntimeError) as error:  # a name too long, a closed folder, links in a circle
        reason = getattr(error, "strerror", None) or error
        return [Problem(f"the output cannot be looked at ({reason})", str(out), hint)]
    if present and not target.is_dir():
        return [Problem("the output exists and is no folder", str(out), hint)]
    if is_mount:
        what = "the output is a mount point, which cannot take a finished folder's place"
        return [Problem(what, str(out), "name a folder inside it")]
    if not files:
        return []
    if not overwrite:
        return [Problem("the output exists and is not empty", str(out), f"{hint}, or allow --overwrite")]
    name, test = replaceable
    if not any(map(test, files)):
        what = f"the folder to replace holds no {name}"
        return [Problem(what, str(target), f"{hint}, or remove this one yourself")]
    if os.path.lexists(old := target.with_name(target.name + REPLACED)):
        what = "what an earlier --overwrite set aside is still there"
        return [Problem(what, str(old), "look whether you need it, then remove it")]
    return []


def _over_inputs(plan: MergePlan, out: Path) -> Iterator[Problem]:
    """Yield the inputs in which the output would lie, or over which."""
    target = Path(os.path.realpath(out))
    places: dict[Path, str] = {}
    for model in plan.models:
        for path in model.places:
            places.setdefault(path.resolve(), model.label)
    for place, label in places.items():
        family = {place, *place.parents}
        if place in target.parents or target in family or target.parent / (target.name + SUFFIX) in family:
            what = f"the output would lie in, or over, the input {label or place}"
            yield Problem(what, str(out), "choose another folder")


def _recipe_inside(plan: MergePlan, out: Path) -> list[Problem]:
    """Return that the folder to replace has the recipe inside it."""
    target = out.resolve()
    if plan.recipe.path is None or target not in plan.recipe.path.resolve().parents:
        return []
    hint = "choose another folder, or remove this one yourself"
    return [Problem("the folder to replace holds the recipe", str(target), hint)]
