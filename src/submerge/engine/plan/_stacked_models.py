"""The plan of a merge whose layers are stacked."""

from __future__ import annotations

from submerge.engine.plan._aligned_inputs import align_inputs
from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._warnings import (
    fused_warnings,
    input_warnings,
    rounding_warnings,
    shape_warnings,
)
from submerge.engine.plan.inputs import Inputs, Settings
from submerge.engine.plan.stacks import architecture_problems, plan_stack
from submerge.engine.plan.tensors import adapter_warnings, budget, weight_files
from submerge.engine.plan.tokens import OutputVocabulary
from submerge.errors import RequestError
from submerge.recipe import Recipe

__all__ = ["plan_stacked"]


def plan_stacked(
    recipe: Recipe, inputs: Inputs, settings: Settings, vocabulary: OutputVocabulary | None = None
) -> MergePlan:
    """Return the plan for models that are open, whose layers are stacked as the recipe's slices say.

    `vocabulary` has the rows of their tables, if those change. Raises `RequestError` with everything that is
    wrong.
    """
    aligned, problems = align_inputs(recipe, inputs, vocabulary, of_any_depth=True)
    if problems:
        raise RequestError(problems)
    inputs, copies = aligned.inputs, aligned.copies
    stack = plan_stack(recipe, inputs, copies.copy_of)
    tensors, problems = stack.plan(aligned.lacks, copies.copy_of)
    problems = problems or architecture_problems(stack, tensors, recipe.stack[0].where)
    if problems:
        raise RequestError(problems)
    return MergePlan(
        recipe=recipe,
        settings=settings,
        inputs=stack.inputs,
        tensors=tuple(tensors),
        shards=weight_files(stack.inputs.reference_model, tensors, settings),
        unused=stack.unused(tensors),
        warnings=(
            *input_warnings(stack.inputs, {}, tensors),
            *shape_warnings(stack.inputs, tensors, as_adapter=False),
            *rounding_warnings(stack.inputs, tensors, recipe.out_dtype or recipe.dtype),
            *adapter_warnings(inputs.models, of_one_base=False),
            *fused_warnings(stack.inputs, tensors),
            *aligned.warnings,
        ),
        budget=budget(tensors, stack.inputs.models, settings.workers, settings.max_memory),
        unties=copies.unties,
        by_class=aligned.by_class,
        stack=stack,
    )
