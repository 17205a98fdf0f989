"""The models of a merge under the names that the output has for their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from submerge.engine.plan.inputs import Copies, Inputs, resolve_copies
from submerge.engine.plan.tensors import align_models
from submerge.engine.plan.tokens import OutputVocabulary, with_known_heads
from submerge.errors import Problem
from submerge.recipe import Recipe

__all__ = ["AlignedInputs", "align_inputs"]


@dataclass(frozen=True)
class AlignedInputs:
    """The models with the reference's names, and a tensor under each name of a parameter that has several.

    Attributes:
        inputs: the models, with the rows of the output's tables, and what part each takes.
        copies: which tensors of the output are one parameter.
        lacks: for each model the tensors that it rightly has none for, with the reason.
        warnings: what is to be said of copies that differ, and of the order of classes.
        by_class: whether rows of a model's heads go by their classes, and not by their place.
    """

    inputs: Inputs
    copies: Copies
    lacks: tuple[Mapping[str, str], ...]
    warnings: tuple[str, ...]
    by_class: bool


def align_inputs(
    recipe: Recipe, inputs: Inputs, vocabulary: OutputVocabulary | None, *, of_any_depth: bool = False
) -> tuple[AlignedInputs, list[Problem]]:
    """Return the models with their tensors named as in the output, and what stands in the way.

    `vocabulary` has the rows of their tables, if those change. Models `of_any_depth` may have more layers
    than the reference.
    """
    alignments, problems = align_models(inputs, of_any_depth=of_any_depth)
    inputs = inputs.of_models([alignment.model for alignment in alignments])
    copies = resolve_copies(recipe, inputs if vocabulary is None else with_known_heads(inputs))
    inputs = copies.inputs if vocabulary is None else vocabulary.laid_over(copies.inputs)
    lacks = (a.of(model).lacks for a, model in zip(alignments, inputs.models, strict=True))
    notes = (note for alignment in alignments for note in alignment.notes)
    by_class = any(alignment.by_class for alignment in alignments)
    return AlignedInputs(inputs, copies, tuple(lacks), (*copies.warnings, *notes), by_class), problems
