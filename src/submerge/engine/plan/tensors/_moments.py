"""Which tensors of a merge have second moments of their layers' inputs, in the folder that the recipe has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from submerge.algebra import LayerParameter
from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tensors._measured_models import other_models, unchecked_models
from submerge.engine.plan.tensors._tensor import TensorPlan
from submerge.errors import Problem, RequestError, few
from submerge.recipe import Recipe
from submerge.store import MomentFile, StoredMoments

__all__ = ["add_moments", "moment_bytes", "moment_warnings"]

NAMES: Mapping[str, Literal["weight", "bias"]] = {
    "weight": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
}
"""Which parameter of its layer a tensor is, by its last word; norms of old files have Greek ones."""
PARTNERS = {"weight": "bias", "bias": "weight", "gamma": "beta", "beta": "gamma"}

BLOCK = 256
"""The most inputs of a block of a `block` moment."""


def add_moments(
    recipe: Recipe, inputs: Inputs, tensors: Sequence[TensorPlan]
) -> tuple[list[TensorPlan], list[Problem]]:
    """Return the tensors, those of layers with the moments of their inputs, and what is wrong."""
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
    problems = problems or other_models(files, recipe, inputs)
    if problems:
        return list(tensors), problems
    layers = _LayerMoments(tuple(files), {tensor.parameter: tensor for tensor in tensors})
    added = [layers.added_to(tensor) for tensor in tensors]
    return added, [problem for tensor in added for problem in _unfit(tensor)]


def moment_warnings(recipe: Recipe, tensors: Sequence[TensorPlan]) -> list[str]:
    """Return which tensors other than vectors have no moments and are averaged, and what was not checked."""
    if recipe.moments is None:
        return []
    unchecked = unchecked_models([MomentFile.open(path) for path in recipe.moment_files])
    merged = [t for t in tensors if t.treatment == "merge" and t.is_changed and len(t.shape) > 1]
    averaged = [t.name for t in merged if t.moments is None]
    if not averaged:
        return unchecked
    what = f"{len(averaged)} tensors have no moments of their inputs and are averaged"
    return [*unchecked, f"{what}: {few(averaged)}"]


@dataclass(frozen=True)
class _LayerMoments:
    """The moments of all tasks, and the tensors of the merge by their parameters."""

    files: tuple[MomentFile, ...]
    tensors: Mapping[str, TensorPlan]

    def added_to(self, tensor: TensorPlan) -> TensorPlan:
        """Return a tensor with the moments of its layer, if it is merged and has some."""
        layer, _, parameter = tensor.parameter.rpartition(".")
        name = NAMES.get(parameter)
        if name is None or not _is_merged(tensor) or not self._measured(layer):
            return tensor
        partner = self._partner(tensor, layer, parameter)
        if name == "bias" and partner is None:
            return tensor
        return replace(
            tensor,
            matrix=True,
            moments=StoredMoments(self.files, layer),
            layer=LayerParameter(self.files[0].kind(layer), name),
            partner=partner,
        )

    def _measured(self, layer: str) -> bool:
        """Return whether all tasks have moments of a layer, of one kind, and one of them saw inputs there."""
        if not all(layer in file.inputs for file in self.files):
            return False
        kinds = {file.kind(layer) for file in self.files}
        return len(kinds) == 1 and any(file.counts[file.inputs[layer]] for file in self.files)

    def _partner(self, tensor: TensorPlan, layer: str, parameter: str) -> TensorPlan | None:
        """Return the layer's other parameter, if it is merged, too, and all moments have a constant 1."""
        other = self.tensors.get(f"{layer}.{PARTNERS[parameter]}")
        if other is None or not _is_merged(other):
            return None
        kind, (rows, columns) = self.files[0].kind(layer), max(tensor, other, key=_dimensions).sides
        n = {"linear": columns, "transposed": rows, "norm": rows}.get(kind, 0)
        joint = 2 * n if kind == "norm" else n + 1
        return other if all(file.width(layer) == joint for file in self.files) else None


def _is_merged(tensor: TensorPlan) -> bool:
    """Return whether a tensor is one that models change, and that is not left to a mixture of projectors."""
    return tensor.action == "merge" and tensor.is_changed and not tensor.mixed


def _dimensions(tensor: TensorPlan) -> int:
    return len(tensor.shape)


def moment_bytes(recipe: Recipe, tensors: Sequence[TensorPlan]) -> int:
    """Return the most that the moments of one model take while they are collected, in float32.

    Modules that share an input are counted one by one: which do, the plan does not know.
    """
    if not recipe.collects_moments:
        return 0
    widths = [tensor.sides[1] for tensor in tensors if len(tensor.shape) > 1 and tensor.is_changed]
    most = {"full": max(widths, default=0), "block": BLOCK}.get(recipe.statistics, 1)
    triangle = 2 if recipe.statistics == "full" else 1  # of full ones the lower triangle is held
    return sum(4 * n * min(n, most) // triangle for n in widths)


def _unfit(tensor: TensorPlan) -> list[Problem]:
    """Return which moments of a tensor are those of another model's."""
    if tensor.moments is None or tensor.layer is None or tensor.partner is not None:
        return []
    layer, (rows, columns) = tensor.moments.module, tensor.sides
    n, most = {
        "linear": (columns, columns + 1),
        "transposed": (rows, rows + 1),
        "embedding": (rows, rows),
        "norm": (rows, 2 * rows),
    }[tensor.layer.kind]
    return [
        Problem(
            f"its moments in {file.path.name} are of {found} inputs, and it has {n}",
            f"tensor {tensor.name}",
            "collect them with this base",
        )
        for file in tensor.moments.files
        if (found := file.width(layer)) not in (n, most)
    ]


def _other_statistics(file: MomentFile, recipe: Recipe) -> list[Problem]:
    found = file.source.get("statistics")
    if found == recipe.statistics:
        return []
    what = f"the moments are {found}, and the recipe's statistics are {recipe.statistics}"
    return [Problem(what, str(file.path), f"add 'statistics: {found}' to the parameters")]
