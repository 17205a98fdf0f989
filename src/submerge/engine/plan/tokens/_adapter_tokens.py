"""Whether the tables that adapters changed mean the same tokens, where an adapter is to come out."""

from __future__ import annotations

from collections.abc import Iterator

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tokens._tables import token_rows, token_tables
from submerge.errors import Problem
from submerge.recipe import Recipe
from submerge.store import Checkpoint, Vocabulary, compare_vocabularies, read_vocabulary

__all__ = ["unlike_adapters"]

_HINT = (
    "merge them into a checkpoint, on their base and with tokenizer_source: union, which merges the rows of "
    "each token; rules: {vocabulary: by-position} adds the updates of rows by their position"
)


def unlike_adapters(recipe: Recipe, inputs: Inputs) -> list[Problem]:
    """Return a problem for each adapter that changes tables, and has other tokens at ids of an earlier one.

    An adapter that comes out has no tokenizer, and updates of rows by their position. Where one vocabulary
    has all tokens of the other, with the same ids, no two tokens meet.
    """
    if recipe.rules.vocabulary != "refuse":
        return []
    read = [(model.label, read_vocabulary(model.tokenizer.folder)) for model in _changed(inputs)]
    known = [(label, vocabulary) for label, vocabulary in read if vocabulary is not None]
    return [
        Problem(f"the vocabularies differ: {told}", label, _HINT)
        for number, (label, vocabulary) in enumerate(known)
        for told in _differences(vocabulary, label, known[:number])
    ]


def _changed(inputs: Inputs) -> Iterator[Checkpoint]:
    """Yield the models whose adapters change a table with a row for each token."""
    for model in inputs.involved.values():
        rows = token_rows(model.tensors)
        if model.adapter is None or rows is None or not model.tokenizer.complete:
            continue
        if not model.edited.isdisjoint(token_tables(model.tensors, rows)):
            yield model


def _differences(own: Vocabulary, label: str, before: list[tuple[str, Vocabulary]]) -> Iterator[str]:
    """Yield in what a vocabulary differs from the first before it that has other tokens at the same ids."""
    for other, theirs in before:
        difference = compare_vocabularies(theirs, own)
        if not difference.within_a and not compare_vocabularies(own, theirs).within_a:
            yield difference.describe(other, label)
            return
