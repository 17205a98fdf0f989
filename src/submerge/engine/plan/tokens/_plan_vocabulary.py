"""The vocabulary that a recipe asks for: the tokens of its models, put together, and where their rows are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from submerge.engine.plan.inputs import Inputs, TokenizerSource
from submerge.engine.plan.tokens._model_tokens import ModelTokens, TokenFlags, stored_tokens
from submerge.engine.plan.tokens._output_tokenizer import (
    PLAIN,
    OutputTokenizer,
    extend_tokenizer,
    united_tokens,
)
from submerge.engine.plan.tokens._tables import token_rows, token_tables
from submerge.engine.plan.tokens._token_ids import lost_token_ids
from submerge.engine.plan.tokens._token_origins import Origin, TokenOrigins, places
from submerge.engine.plan.tokens._vocabulary import OutputVocabulary, rows_hint
from submerge.engine.plan.tokens._vocabulary_planner import VocabularyPlanner
from submerge.errors import Problem, counted, few
from submerge.recipe import Recipe
from submerge.store import Adapter, Checkpoint, optional_json, text_parts

__all__ = ["plan_vocabulary"]


def plan_vocabulary(
    recipe: Recipe, inputs: Inputs, source: TokenizerSource
) -> tuple[OutputVocabulary | None, list[Problem]]:
    """Return the vocabulary that the recipe asks for, and what is wrong with it.

    Rows are those of mergekit: in a model that lacks a token it is what the recipe says of it, else the
    base's, else the mean of all that have it. So the updates are zero where a model has no say.
    """
    return _MergedTokens(recipe, inputs, source).plan()


class _MergedTokens(VocabularyPlanner):
    """The tokens of the recipe's models, put together."""

    def vocabulary(self) -> OutputVocabulary:
        """Return the vocabulary; problems are noted or raised."""
        self._note_unknown_rows()
        tokenizer = self._tokenizer()
        rules = self.recipe.tokenizer.tokens
        origins = TokenOrigins(
            ids=tokenizer.ids,
            models={position: self._rows_of(position) for position in self.inputs.involved},
            base=self.inputs.base,
            rules=rules,
            positions={rule.model: self.inputs.position(rule.model) for rule in rules.values() if rule.model},
            holes=self._holes(tokenizer),
        )
        self.problems += origins.problems()
        self._note_token_ids()
        ids = {position: places(tokenizer.ids, self.tokens[position].ids) for position in self.tokens}
        self._note_lost_ids(ids[self.inputs.reference])
        self._note_tokens_without_rows(tokenizer)
        beyond = self._beyond(origins.without_row)
        return OutputVocabulary(
            tokenizer=tokenizer,
            origins=origins,
            rows=self.padded(len(origins.texts)),
            ids=ids,
            token_ids=self._named_ids(self.source.model),
            lines=tuple(self._lines(tokenizer, origins)),
            warnings=tuple(self.warnings),
            beyond=beyond,
        )

    @cached_property
    def tokens(self) -> dict[int, ModelTokens]:
        """The tokens of each model; of one without a tokenizer, those of the reference."""
        read: dict[str, ModelTokens] = {}
        reference = self.inputs.reference_model
        first = reference if reference.tokenizer.complete else self.source.model
        tokens = {}
        for position, model in self.inputs.involved.items():
            folder = (model if model.tokenizer.complete else first).tokenizer.folder
            if str(folder) not in read:
                read[str(folder)] = stored_tokens(folder)
            tokens[position] = read[str(folder)]
        return tokens

    def _note_unknown_rows(self) -> None:
        """Note rows of which no tokenizer says what they are, and those that one table alone has."""
        reference = self.inputs.reference_model
        for model in self.inputs.involved.values():
            adapter, rows = model.adapter, token_rows(model.tensors) or 0
            brought = model.tokenizer if adapter is None else adapter.tokenizer
            beside = reference if adapter is None else model.under  # whose tokenizer stands in
            before = rows if beside is None else token_rows(beside.tensors) or 0
            if rows > before and (brought is None or not brought.complete):
                self._note_unnamed(model, rows, before)
            if adapter is not None:
                self.problems += _problems_of_heads(model, adapter, rows)

    def _note_unnamed(self, model: Checkpoint, rows: int, before: int) -> None:
        """Note rows that were added to a table, and that no tokenizer has a token for."""
        if model.adapter is None:
            what = f"there is no tokenizer here, and rows beyond the {before} of the base are left out"
            self.warnings.append(f"{model.label}: {what}")
            return
        what = f"its tables have {rows} rows, {rows - before} more than before, and no tokenizer says of what"
        hint = "save the tokenizer that it was trained with into its folder"
        self.problems.append(Problem(what, str(model.adapter.path), hint))

    def _tokenizer(self) -> OutputTokenizer:
        files = self.source.model.tokenizer
        own = stored_tokens(files.folder)
        wanted: dict[str, TokenFlags] = {}
        if self.recipe.tokenizer_source == "union":
            others = [(self.inputs.models[p].label, self._with_rows(p)) for p in self.tokens]
            wanted, warnings = united_tokens(own, others)
            self.warnings += warnings
        known = own.ids.keys() | wanted.keys()
        wanted |= {text: PLAIN for text in self.recipe.tokenizer.tokens if text not in known}
        tokenizer = extend_tokenizer(files, own, wanted)
        if tokenizer.unreached:
            shown = few(map(repr, tokenizer.unreached))
            self.warnings.append(
                f"{counted(len(tokenizer.unreached), 'token')} cannot be met in a text: {shown}"
            )
        return tokenizer

    def _with_rows(self, position: int) -> ModelTokens:
        """Return the tokens of a model that its tables have rows for."""
        rows, added = self._rows_of(position), self.tokens[position].added
        return ModelTokens(rows, {text: flags for text, flags in added.items() if text in rows})

    def _rows_of(self, position: int) -> dict[str, int]:
        return self.ids_with_rows(self.tokens[position], self.inputs.models[position])

    def _holes(self, tokenizer: OutputTokenizer) -> dict[int, Origin]:
        """Return the rows of ids without a token: the reference's own, where the tokenizer is."""
        reference = self.inputs.reference
        if self.inputs.reference_model.tokenizer.folder != tokenizer.files.folder:
            return {}
        used, rows = set(tokenizer.ids.values()), token_rows(self.inputs.reference_model.tensors) or 0
        last = max(used, default=-1)
        return {id_: ((reference, id_),) for id_ in range(min(last, rows)) if id_ not in used}

    def _note_token_ids(self) -> None:
        """Note rules that name a row which a model does not have."""
        for rule in self.recipe.tokenizer.tokens.values():
            if rule.token_id is None or not rule.model:
                continue
            rows = token_rows(self.inputs.models[self.inputs.position(rule.model)].tensors) or 0
            if rule.token_id >= rows:
                what = f"{rule.model} has {rows} rows, and none for the id {rule.token_id}"
                self.problems.append(Problem(what, rule.where, "name a token's id"))

    def _named_ids(self, model: Checkpoint) -> dict[str, Any]:
        """Return what a configuration says of ids and all else; what it says outermost counts."""
        return {key: value for part in reversed(text_parts(model.config)) for key, value in part.items()}

    def _note_lost_ids(self, ids: Mapping[int, int | None]) -> None:
        """Note tokens that the reference's configurations name and the output lacks."""
        reference = self.inputs.reference_model
        texts = {id_: text for text, id_ in self.tokens[self.inputs.reference].ids.items()}
        beside = optional_json(reference.path / "generation_config.json")
        parts = [*text_parts(reference.config), beside]
        lost = dict.fromkeys(pair for part in parts for pair in lost_token_ids(part, ids))
        if lost:
            shown = few([f"{key}: {texts[id_]!r}" for key, id_ in lost])
            what = f"its configuration names what the output lacks ({shown})"
            self.warnings.append(f"{reference.label}: {what}; ids of {self.source.label} are taken, or none")

    def _note_tokens_without_rows(self, tokenizer: OutputTokenizer) -> None:
        """Note tokens that a union leaves out, for the model that has them has no row for them."""
        if self.recipe.tokenizer_source != "union":  # then the lines tell what is not in the output
            return
        for position, theirs in self.tokens.items():
            rows = self._rows_of(position)
            left = [text for text in theirs.ids if text not in rows and text not in tokenizer.ids]
            if left:
                what = f"{counted(len(left), 'token')} without a row in its tables ({few(map(repr, left))})"
                self.warnings.append(f"{self.inputs.models[position].label}: {what}: left out")

    def _beyond(self, texts: Sequence[str]) -> dict[str, int]:
        """Return those of tokens without a row that a model has; note that others get rows of zeros."""
        beyond = {
            text: tokens.ids[text] for tokens in self.tokens.values() for text in texts if text in tokens.ids
        }
        if others := [text for text in texts if text not in beyond]:
            what = (
                f"{counted(len(others), 'token')} of no model have rows of zeros ({few(map(repr, others))})"
            )
            self.warnings.append(f"{self.source.label}: {what}")
        return beyond

    def _lines(self, tokenizer: OutputTokenizer, origins: TokenOrigins) -> Iterator[str]:
        """Yield what is said of each model's tokens, and of the output's."""
        rows, tokens = self.padded(len(origins.texts)), len(tokenizer.ids)
        padding = rows - len(origins.texts)
        filled = f", {padding} of them the mean of the others" if padding else ""
        yield f"output: {tokens} tokens, {rows} rows{filled}"
        own = self.tokens[self.inputs.reference].ids
        for position, theirs in self.tokens.items():
            yield f"{self.inputs.models[position].label}: {self._line(theirs, own, tokenizer)}"

    def _line(self, theirs: ModelTokens, own: Mapping[str, int], tokenizer: OutputTokenizer) -> str:
        new = [text for text in theirs.ids if text not in own and text in tokenizer.ids]
        lost = [text for text in theirs.ids if text not in tokenizer.ids]
        lacks = sum(text not in theirs.ids for text in tokenizer.ids)
        parts = [f"{len(theirs.ids)} tokens"]
        parts += [f"brings {few(map(repr, new))}"] if new else []
        parts += [f"lacks {lacks} of the output's"] if lacks else []
        parts += [f"{len(lost)} not in the output ({few(map(repr, lost))})"] if lost else []
        return ", ".join(parts)


def _problems_of_heads(model: Checkpoint, adapter: Adapter, rows: int) -> Iterator[Problem]:
    """Yield a problem for each head of an adapter that has rows beyond those of the embedding.

    PEFT saves of a resized model those tables alone that an adapter changes.
    """
    for name in sorted(adapter.replaced):
        count = model.tensors[name].shape[0]
        if count > rows and name in token_tables(model.tensors, count):
            what = f"{name} has {count} rows, and the embedding that it was saved without has {rows}"
            yield Problem(what, str(adapter.path), rows_hint("the embedding"))
