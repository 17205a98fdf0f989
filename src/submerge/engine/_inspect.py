"""How the updates of a recipe's models overlap: one pass over the weight matrices, without a merge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from submerge.arguments import checked
from submerge.engine._inspection import Inspection, MatrixOverlap
from submerge.engine._matrix_overlap import matrix_overlap
from submerge.engine.plan import MergePlan, Settings, TensorPlan, adapter_warnings, make_plan
from submerge.engine.work import (
    ChunkReader,
    Pass,
    Passes,
    adapter_edits,
    decomposing,
    input_updates,
    run_jobs,
    single,
)
from submerge.errors import Problem, RequestError
from submerge.methods import METHODS
from submerge.names import layer_of
from submerge.recipe import ModelEntry, OutputForm, Recipe, Rules, load_recipe, same_model
from submerge.store import FileTable

__all__ = ["InspectionProgress", "inspect_updates"]

LENIENT = Rules(missing="base", shape="base", vocabulary="by-position")
"""What cannot be merged is left out: nothing is merged here."""


class InspectionProgress(NamedTuple):
    """How far an inspection is: matrices, of how many, and seconds so far."""

    done: int
    total: int
    seconds: float


@checked
def inspect_updates(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    rank: int | None = None,
    settings: Settings | None = None,
    progress: Callable[[InspectionProgress], None] = lambda _: None,
) -> Inspection:
    """Return how the updates of a recipe's models overlap, for each weight matrix and each pair of models.

    Of two updates of a matrix the principal angles between their column spaces and between their row spaces
    are computed, and the cosine; of each its norm and stable rank; and of all together the energy that the
    subspace of SSAM (arXiv 2603.21584) keeps at several ranks. The recipe's method, options and rules do
    not matter, and nothing is merged. One matrix at a time is read by each worker, and adapters stay factors.

    Args:
        recipe: a path, YAML text (with a newline), a mapping, or a `Recipe`. Adapters alone need no base.
        rank: the most leading singular directions of an update that are compared; by default all of a LoRA
            adapter's, and 32 of a dense update.
        settings: `threads`, `max_memory` and `allow_pickle` count.
        progress: called about ten times a second.

    Raises:
        RequestError: the recipe or the inputs are not right, one model alone is named, or none changes a
            matrix.
        WorkError: a file failed, or an update holds NaN or Inf.

    Examples:
        >>> import submerge
        >>> inspection = submerge.inspect_updates("recipe.yaml")
        >>> inspection.models, len(inspection.matrices)
        (('chat', 'code', 'math'), 28)
        >>> abs(inspection.matrices[0].pairs[0].cosine) < 0.1  # the updates are noise
        True
    """
    if rank is not None and rank < 1:
        raise RequestError(Problem(f"the rank must be at least 1; found {rank}", "--rank", "such as 16"))
    asked = _for_inspection(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))
    plan = _plan(asked, settings)
    if plan.pending:  # the headers were fine, and now the values are worth their download
        plan = _plan(asked, settings, download=True)
    tensors = _by_layer(t for t in plan.tensors if t.action == "merge" and t.matrix)
    overlaps = _overlaps(plan, tensors, rank, progress)
    matrices = tuple(overlap for overlap in overlaps if overlap is not None)
    if not matrices:
        what = "the models do not differ from their base in any weight matrix"
        raise RequestError(Problem(what, "models", "name fine-tunes or adapters of the base"))
    untouched = tuple(
        tensor.name for tensor, overlap in zip(tensors, overlaps, strict=True) if overlap is None
    )
    warnings = adapter_warnings(plan.models, of_one_base=plan.composition is None)
    return Inspection(_labels(asked), matrices, untouched, rank, tuple(warnings))


def _for_inspection(recipe: Recipe) -> Recipe:
    """Return the recipe by whose plan the updates are read: SSAM's, for which every matrix has an update."""

    def bare(entries: Sequence[ModelEntry]) -> tuple[ModelEntry, ...]:
        return tuple(replace(entry, parameters={}, head=()) for entry in entries)

    if recipe.stack:
        hint = "list the models under 'models'"
        raise RequestError(
            Problem("an overlap is one of whole models, and layers are stacked", "slices", hint)
        )
    base = None if recipe.base is None else same_model(recipe.base)
    tuned = [entry for entry in recipe.participants if same_model(entry.model) != base]
    if len(tuned) < 2:
        what = f"an overlap is one of two models or more; found {len(tuned)} besides the base"
        raise RequestError(Problem(what, "models", "name another one"))
    return replace(
        recipe,
        method=METHODS["ssam"],
        models=bare(recipe.models),
        participants=bare(tuned),
        parameters={},
        coefficients=None,
        calibrates=False,
        rules=LENIENT,
        output=OutputForm("adapter") if base is None else recipe.output,
    )


def _plan(recipe: Recipe, settings: Settings | None, *, download: bool = False) -> MergePlan:
    """Return the plan; where the recipe has no base and needs one, the problems say what for."""
    try:
        return make_plan(recipe, settings, download=download)
    except RequestError as error:
        if recipe.base is not None:
            raise
        hint = "add 'base_model: …', which adapters alone do not need"
        raise RequestError(
            [
                Problem("updates are differences from a base, and none is named", problem.where, hint)
                if problem.what.startswith("the base's values are needed")
                else problem
                for problem in error.problems
            ]
        ) from None


def _by_layer(tensors: Iterable[TensorPlan]) -> list[TensorPlan]:
    """Return tensors by the numbers of their layers: files have them in the order of the alphabet."""
    return sorted(tensors, key=lambda tensor: layer_of(tensor.name) or ("", -1))


def _labels(recipe: Recipe) -> tuple[str, ...]:
    """Return the last parts of the models' names, or all of the names where two would be called alike."""
    short = tuple(entry.adapter_name for entry in recipe.participants)
    if len(set(short)) == len(short):
        return short
    return tuple(entry.model for entry in recipe.participants)


def _overlaps(
    plan: MergePlan,
    tensors: Sequence[TensorPlan],
    rank: int | None,
    progress: Callable[[InspectionProgress], None],
) -> list[MatrixOverlap | None]:
    """Return the overlap in each matrix, None where no model changes it."""
    begun, overlaps = time.perf_counter(), dict[int, MatrixOverlap | None]()

    def tick() -> None:
        progress(InspectionProgress(len(overlaps), len(tensors), time.perf_counter() - begun))

    def job(index: int, files: FileTable) -> Passes:
        tensor = tensors[index]
        sources = [plan.models[i.model].source(i.entry.name, files) for i in tensor.read]
        reader = ChunkReader(tensor, sources, adapter_edits(plan.models, tensor, files))
        overlaps[index] = yield _inspecting(reader, rank)

    tick()
    with FileTable() as files:
        jobs = (job(index, files) for index in range(len(tensors)))
        run_jobs(jobs, threads=plan.budget.workers, device="cpu", tick=tick)
    tick()
    return [overlaps[index] for index in range(len(tensors))]


def _inspecting(reader: ChunkReader, rank: int | None) -> Pass:
    """Return the pass whose result is the overlap in a matrix."""

    def work(_: object) -> MatrixOverlap | None:
        with decomposing(reader.plan.name):
            return matrix_overlap(reader.plan.name, input_updates(reader), rank)

    return single(reader.plan.numel, work)
