"""Which matrices of a merge have second moments of their inputs, in the folder that the recipe has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from submerge.engine.plan._tensor import TensorPlan
from submerge.errors import Problem, RequestError, few
from submerge.recipe import Recipe
from submerge.store import MomentFile, StoredMoments

__all__ = ["add_moments", "moment_bytes", "moment_warnings"]

BLOCK = 256
"""The most inputs of a block of a `block` moment."""


def add_moments(recipe: Recipe, tensors: Sequence[TensorPlan]) -> tuple[list[TensorPlan], list[Problem]]:
    """Return the tensors, those that are linear maps with the moments of their inputs, and what is wrong."""
    if recipe.moments is None:
        return list(tensors), []
    files: list[MomentFile] = []
    problems: list[Problem] = []
    for path in recipe.moment_files:
        try:
            file = MomentFile.open(path)
        except RequestError as error:
            problems += error.problems
            continue
        files.append(file)
        problems += _other_statistics(file, recipe)
    if problems:
        return list(tensors), problems
    added = [_with_moments(tensor, tuple(files)) for tensor in tensors]
    return added, [problem for tensor in added for problem in _unfit(tensor)]


def moment_warnings(recipe: Recipe, tensors: Sequence[TensorPlan]) -> list[str]:
    """Return that some matrices have no moments and are averaged, if there are such."""
    if recipe.moments is None:
        return []
    averaged = [t.name for t in tensors if t.matrix and t.moments is None and t.is_changed]
    if not averaged:
        return []
    what = f"{len(averaged)} matrices have no moments of their inputs and are averaged"
    return [f"{what}: {few(averaged)}"]


def _with_moments(tensor: TensorPlan, files: tuple[MomentFile, ...]) -> TensorPlan:
    """Return a tensor with its moments, if all tasks have some and one of them saw inputs there."""
    module = tensor.parameter.removesuffix(".weight")
    if not tensor.matrix or not all(module in file.inputs for file in files):
        return tensor
    if not any(file.counts[file.inputs[module]] for file in files):
        return tensor
    return replace(tensor, moments=StoredMoments(files, module))


def moment_bytes(recipe: Recipe, tensors: Sequence[TensorPlan]) -> int:
    """Return the most that the moments of one model take while they are collected, in float32.

    Modules that share an input are counted one by one: which do, the plan does not know.
    """
    if not recipe.collects_moments:
        return 0
    widths = [tensor.sides[1] for tensor in tensors if tensor.matrix and tensor.is_changed]
    most = {"full": max(widths, default=0), "block": BLOCK}.get(recipe.statistics, 1)
    triangle = 2 if recipe.statistics == "full" else 1  # of full ones the lower triangle is held
    return sum(4 * n * min(n, most) // triangle for n in widths)


def _unfit(tensor: TensorPlan) -> list[Problem]:
    """Return which moments of a tensor are those of another model's."""
    if tensor.moments is None:
        return []
    width, module = tensor.sides[1], tensor.moments.module
    return [
        Problem(
            f"its moments in {file.path.name} are of {found} inputs, and it has {width}",
            f"tensor {tensor.name}",
            "collect them with this base",
        )
        for file in tensor.moments.files
        if (found := file.widths[file.inputs[module]]) != width
    ]


def _other_statistics(file: MomentFile, recipe: Recipe) -> list[Problem]:
    found = file.source.get("statistics")
    if found == recipe.statistics:
        return []
    what = f"the moments are {found}, and the recipe's statistics are {recipe.statistics}"
    return [Problem(what, str(file.path), f"add 'statistics: {found}' to the parameters")]
