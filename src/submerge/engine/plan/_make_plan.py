"""From a recipe to its plan: each step decides one thing, and all of them tell what is wrong at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from submerge.arguments import checked
from submerge.device import check_device
from submerge.engine.plan._aligned_inputs import AlignedInputs, align_inputs
from submerge.engine.plan._loaded_parameters import unplaced_projectors, unplaced_updates
from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._stacked_models import plan_stacked
from submerge.engine.plan._unfit_streams import unfit_streams
from submerge.engine.plan._warnings import (
    fused_warnings,
    input_warnings,
    rounding_warnings,
    shape_warnings,
    unused_tensors,
)
from submerge.engine.plan.composition import Composition, plan_composition, stream_warnings
from submerge.engine.plan.inputs import Inputs, Settings, licence_warnings, open_models
from submerge.engine.plan.projectors import ProjectorPlan, plan_projectors
from submerge.engine.plan.stacks import as_models
from submerge.engine.plan.tensors import (
    Budget,
    TensorPlan,
    adapter_warnings,
    add_moments,
    budget,
    calibration_bytes,
    coefficient_problems,
    coefficient_warnings,
    expert_warnings,
    idle_models,
    moment_bytes,
    moment_warnings,
    naming_warnings,
    other_base_warnings,
    plan_gate,
    plan_tensors,
    table_warnings,
    tied_to_heads,
    weight_files,
)
from submerge.engine.plan.tokens import (
    OutputVocabulary,
    TokenPlan,
    code_warnings,
    cut_warnings,
    plan_tokens,
    shared_token_plan,
    with_chat_template,
    with_token_rows,
)
from submerge.errors import Problem, RequestError
from submerge.recipe import Recipe, load_recipe
from submerge.store import Checkpoint, is_tokenizer_file

__all__ = ["make_plan", "plan_models"]

ADAPTER_DTYPES = ("bfloat16", "float16", "float32")


@checked
def make_plan(
    source: str | Path | Mapping[str, Any] | Recipe,
    settings: Settings | None = None,
    *,
    download: bool = False,
) -> MergePlan:
    """Return the plan of a recipe, from the recipe, the files' headers, and a few values.

    Args:
        source: a path, YAML text (with a newline), a mapping, or a `Recipe`.
        settings: how the merge will be run.
        download: fetch the weights of models on the Hub, too; else only their small files and headers.

    Raises:
        RequestError: every problem of the recipe, or (if that is fine) of the files.

    Examples:
        >>> import submerge
        >>> plan = submerge.plan("recipe.yaml")
        >>> plan.tensors[0].name, plan.tensors[0].treatment
        ('lm_head.weight', 'merge')
        >>> submerge.merge(plan, "merged").warnings
        ()
    """
    settings = settings or Settings()
    check_device(settings.device)
    recipe = source if isinstance(source, Recipe) else load_recipe(source)
    inputs = open_models(recipe, settings, download=download)
    if recipe.stack:
        recipe, inputs = as_models(recipe, inputs)
    tokens, problems = (None, []) if recipe.composed else plan_tokens(recipe, inputs)
    problems += link_problems(recipe, inputs.reference_model)
    if problems and recipe.gathers_rows:  # tables lack the rows that make them one shape
        raise RequestError(problems)
    try:
        plan_inputs = plan_stacked if recipe.stack else plan_models
        plan = plan_inputs(recipe, inputs, settings, tokens.vocabulary if tokens else None)
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems)
    if plan.composition:
        if problems := unfit_streams(plan):
            raise RequestError(problems)
        tokens = shared_token_plan(plan.composition.tokens)
    problems, unplaced = unplaced_updates(plan)
    if problems := [*problems, *unplaced_projectors(plan)]:
        raise RequestError(problems)
    tokens = tokens and with_chat_template(tokens, recipe, inputs)
    more = (*_token_warnings(tokens, recipe, inputs), *licence_warnings(plan.licences))
    return replace(plan, tokens=tokens, warnings=(*recipe.warnings, *plan.warnings, *unplaced, *more))


def plan_models(
    recipe: Recipe, inputs: Inputs, settings: Settings, vocabulary: OutputVocabulary | None = None
) -> MergePlan:
    """Return the plan for models that are open; `vocabulary` has the rows of their tables, if those change.

    Tensors alone are looked at; vocabularies are not compared.
    """
    aligned, refusals = align_inputs(recipe, inputs, vocabulary)
    problems = [*_unfit_for_adapter(recipe), *refusals]
    inputs, copies = aligned.inputs, aligned.copies
    gate, refusals = plan_gate(recipe, inputs) if recipe.method.gate else (None, [])
    problems += refusals
    composition: Composition | None = None
    if recipe.composed:
        composition = _composition(recipe, inputs, problems)
        inputs = with_token_rows(inputs, composition.tokens)
    recipe, projectors, mixing_warnings = _projectors(recipe, inputs, problems)
    tensors, refusals = _tensors(recipe, inputs, aligned, projectors)
    problems += refusals
    of_models = [t for t in tensors if not (projectors and projectors.parts.in_encoder(t.name))]
    problems = problems or idle_models(of_models, inputs)
    if problems:
        raise RequestError(problems)
    as_adapter = recipe.output.form == "adapter"
    plan = MergePlan(
        recipe=recipe,
        settings=settings,
        inputs=inputs,
        tensors=tuple(tensors),
        shards=() if as_adapter else weight_files(inputs.reference_model, tensors, settings),
        unused={} if as_adapter else unused_tensors(inputs, tensors, gate, composition, projectors),
        warnings=(),
        budget=_budget(recipe, inputs, tensors, settings, vocabulary),
        gate=gate,
        composition=composition,
        projectors=projectors,
        unties=copies.unties,
        by_class=aligned.by_class,
        ties=tied_to_heads(tensors, inputs, copies.tied) if as_adapter else {},
    )
    return replace(plan, warnings=(*_warnings(plan, of_models, aligned), *mixing_warnings))


def _tensors(
    recipe: Recipe,
    inputs: Inputs,
    aligned: AlignedInputs,
    projectors: ProjectorPlan | None,
) -> tuple[list[TensorPlan], list[Problem]]:
    """Return how each tensor is merged, and what is wrong with tensors, coefficients and moments."""
    tensors, problems = plan_tensors(recipe, inputs, aligned.lacks, aligned.copies.copy_of, projectors)
    problems = [*problems, *coefficient_problems(recipe, inputs, tensors)]
    tensors, refusals = add_moments(recipe, inputs, tensors)
    problems += refusals
    if not inputs.reference_model.tensors:
        problems.append(Problem("there is no tensor to merge", inputs.reference_model.label))
    return tensors, problems


def _warnings(plan: MergePlan, of_models: Sequence[TensorPlan], aligned: AlignedInputs) -> Iterator[str]:
    """Yield what is said of a plan; `of_models` are the tensors but for those of projectors of tasks."""
    inputs, tensors = plan.inputs, plan.tensors
    yield from coefficient_warnings(plan.recipe)
    yield from moment_warnings(plan.recipe, tensors)
    yield from naming_warnings(of_models, inputs, aligned.lacks)
    yield from input_warnings(inputs, plan.unused, tensors)
    as_adapter = plan.recipe.output.form == "adapter"
    if not plan.gate:
        yield from shape_warnings(inputs, of_models, as_adapter=as_adapter)
    if not as_adapter:
        yield from rounding_warnings(inputs, tensors, plan.recipe.out_dtype or plan.recipe.dtype)
    yield from adapter_warnings(inputs.models, of_one_base=plan.composition is None)
    yield from table_warnings(tensors, inputs.models)
    yield from fused_warnings(inputs, tensors)
    yield from expert_warnings(tensors, inputs)
    yield from aligned.warnings
    yield from stream_warnings(inputs, tensors)
    yield from other_base_warnings(inputs)
    if plan.composition:
        yield from plan.composition.warnings


def _budget(
    recipe: Recipe,
    inputs: Inputs,
    tensors: Sequence[TensorPlan],
    settings: Settings,
    vocabulary: OutputVocabulary | None,
) -> Budget:
    """Return how many workers fit into memory, beside passes over data and the rows of a donor's tokens.

    Raises `RequestError` where not even one does.
    """
    donor = vocabulary.donor if vocabulary else None
    return budget(
        tensors,
        inputs.models,
        settings.workers,
        settings.max_memory,
        data_passes=calibration_bytes(recipe, inputs) + moment_bytes(recipe, tensors),
        beside=donor.memory(settings.workers) if donor else 0,
    )


def _projectors(
    recipe: Recipe, inputs: Inputs, problems: list[Problem]
) -> tuple[Recipe, ProjectorPlan | None, list[str]]:
    """Return what `plan_projectors` does; what is wrong is noted."""
    try:
        return plan_projectors(recipe, inputs)
    except RequestError as error:
        problems += error.problems
        return recipe, None, []


def _composition(recipe: Recipe, inputs: Inputs, problems: Sequence[Problem]) -> Composition:
    """Return the specialists of a composed model; raise `RequestError` with other problems, too."""
    try:
        composition = plan_composition(recipe, inputs)
    except RequestError as error:
        raise RequestError([*problems, *error.problems]) from None
    if problems:
        raise RequestError(problems)
    return composition


def _unfit_for_adapter(recipe: Recipe) -> list[Problem]:
    """Return why what is asked for is no adapter: its type, or a method of weights, not of updates."""
    method, dtype = recipe.method, recipe.out_dtype or recipe.dtype
    problems: list[Problem] = []
    if recipe.output.form == "checkpoint":
        return problems
    if dtype not in (None, *ADAPTER_DTYPES):
        problems.append(
            Problem(f"{dtype} is no type for an adapter", "dtype", f"one of {', '.join(ADAPTER_DTYPES)}")
        )
    if method.gate and not method.gate.adapter_output:
        what = f"{method.name} keeps a gate over its tasks, and an adapter has no place for one"
        problems.append(
            Problem(what, "output", "write a checkpoint; `submerge export` makes an adapter of each task")
        )
    if method.origin == "zero" and method.coefficients is None:
        what = f"{method.name} merges whole weights, and an adapter holds updates"
        hint = "write a checkpoint, or choose another method (`submerge methods`)"
        problems.append(Problem(what, "output", hint))
    return problems


def link_problems(recipe: Recipe, reference: Checkpoint) -> list[Problem]:
    """Return why files beside the weights cannot be copied into the output, but for the tokenizer's."""
    if recipe.output.form == "adapter":
        return []
    return [problem for path, problem in reference.links.items() if not is_tokenizer_file(path)]


def _token_warnings(tokens: TokenPlan | None, recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """Yield what is said of the output's tokenizer, and of models that were trained with another."""
    if tokens is None:
        yield from _tokenizer_left_out(recipe)
    else:
        yield from (*tokens.warnings, *code_warnings(tokens.tokenizer, inputs))
    yield from cut_warnings(recipe, inputs)


def _tokenizer_left_out(recipe: Recipe) -> tuple[str, ...]:
    """Return warnings where a recipe names a tokenizer or a template and an adapter is to come out."""
    given = {"tokenizer_source": recipe.tokenizer_source, "chat_template": recipe.chat_template}
    return tuple(
        f"{key}: an adapter carries no tokenizer" for key, value in given.items() if value is not None
    )
