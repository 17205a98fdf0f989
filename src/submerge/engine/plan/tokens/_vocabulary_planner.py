"""What plans of an output's vocabulary have in common, wherever its tokens come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from submerge.engine.plan.inputs import Inputs, TokenizerSource
from submerge.engine.plan.tokens._model_tokens import ModelTokens
from submerge.engine.plan.tokens._tables import token_rows
from submerge.engine.plan.tokens._vocabulary import OutputVocabulary
from submerge.errors import Problem, RequestError
from submerge.recipe import Recipe
from submerge.store import Checkpoint

__all__ = ["VocabularyPlanner"]


@dataclass
class VocabularyPlanner(ABC):
    """Plans the vocabulary of a merge's output; what is wrong, and what is to be said, comes together.

    Attributes:
        source: the model whose tokenizer the output has.
    """

    recipe: Recipe
    inputs: Inputs
    source: TokenizerSource
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def plan(self) -> tuple[OutputVocabulary | None, list[Problem]]:
        """Return the vocabulary, or None and what is wrong."""
        try:
            vocabulary = self.vocabulary()
        except RequestError as error:
            return None, [*self.problems, *error.problems]
        return (None if self.problems else vocabulary), self.problems

    @abstractmethod
    def vocabulary(self) -> OutputVocabulary | None:
        """Return the vocabulary; problems are noted or raised."""

    def padded(self, rows: int) -> int:
        """Return as many rows as the output has for so many ids."""
        multiple = self.recipe.tokenizer.pad_to_multiple_of or 1
        return -(-rows // multiple) * multiple

    def ids_with_rows(self, tokens: ModelTokens, model: Checkpoint) -> dict[str, int]:
        """Return the ids of those tokens that a model's tables have rows for."""
        rows = token_rows(model.tensors) or 0
        return {text: id_ for text, id_ in tokens.ids.items() if id_ < rows}
