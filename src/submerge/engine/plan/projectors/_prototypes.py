"""The prototypes of a merge's tasks: files that a recipe names, or what its data will be made to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from submerge.engine.plan.inputs import stored_digest, unchecked
from submerge.errors import Problem, RequestError
from submerge.recipe import ProjectorMix, Recipe
from submerge.store import Checkpoint, ProjectorSettings, PrototypeFile

__all__ = ["open_prototypes", "prototype_bytes", "unchecked_base"]


def open_prototypes(
    recipe: Recipe, mix: ProjectorMix, base: Checkpoint
) -> tuple[tuple[PrototypeFile, ...], list[Problem]]:
    """Return the prototypes of each task, as far as the recipe has a folder of them, and what is wrong."""
    files: list[PrototypeFile] = []
    problems: list[Problem] = []
    for path in recipe.prototype_files:
        try:
            files.append(PrototypeFile.open(path))
        except RequestError as error:
            problems += error.problems
    for file in files:
        problems += _unfit(file, mix)
    problems += _other_base(files, base)
    if len(shapes := {file.shapes["images"][1] for file in files if "images" in file.shapes}) > 1:
        what = f"prototypes of {', '.join(map(str, sorted(shapes)))} numbers are not of one encoder"
        problems.append(Problem(what, "prototypes", "make them again, with one base"))
    return tuple(files), problems


def unchecked_base(files: Sequence[PrototypeFile]) -> list[str]:
    """Return that files do not tell of which base their prototypes are, if some do not."""
    return unchecked(files, "these prototypes are of this base")


def _other_base(files: Sequence[PrototypeFile], base: Checkpoint) -> list[Problem]:
    """Return which prototypes were made by the encoder of another base."""
    known = [file for file in files if file.source.get("model_digest") is not None]
    if not known or (digest := stored_digest(base)) is None:
        return []
    what, hint = f"made with another base than {base.label}", "make them again: merge with 'data'"
    return [Problem(what, str(f.path), hint) for f in known if f.source["model_digest"] != digest]


def _unfit(file: PrototypeFile, mix: ProjectorMix) -> list[Problem]:
    """Return in what prototypes were made otherwise than the recipe asks for."""
    problems = []
    for name, wanted in {"pooling": mix.options["pooling"], "prototypes": mix.prototypes}.items():
        if (made := file.source.get(name)) != wanted:
            what = f"made with {name}: {made}, and the recipe has {wanted}"
            problems.append(Problem(what, str(file.path), f"add '{name}: {made}' to 'projectors'"))
    if "images" not in file.shapes:
        problems.append(Problem("it has no prototypes of images", str(file.path), "make them again"))
    if (key := mix.options["key"]) not in (None, "image") and "text" not in file.shapes:
        what = f"its questions were not looked at, and the recipe has key: {key}"
        problems.append(Problem(what, str(file.path), "make them again from data, or write key: image"))
    return problems


def prototype_bytes(
    base: Checkpoint, names: Sequence[str], settings: ProjectorSettings, tasks: int, count: int
) -> int:
    """Return the most that prototypes and a discriminant of all tasks take, by the projector's matrices."""
    sides = [base.tensors[name].shape for name in names if len(base.tensors[name].shape) == 2]
    width = max((inputs for _, inputs in sides), default=0)
    if settings.pooling == "position":
        width *= _positions(base.config or {})
    text = max((outputs for outputs, _ in sides), default=0) if settings.key != "image" else 0
    twice = 2 if settings.score == "discriminant" else 1
    return 4 * tasks * twice * (count * (width + 1) + text + 1)


def _positions(config: dict[str, Any]) -> int:
    """Return how many positions an image has, as a configuration says: its patches, and one for all."""
    vision = config.get("vision_config") or {}
    size, patch = vision.get("image_size"), vision.get("patch_size")
    if not isinstance(size, int) or not isinstance(patch, int):
        return 1
    return math.ceil(size / patch) ** 2 + 1
