"""A donor's tokenizer for a model: which tokens both have, and how the rows of the others are found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from submerge.engine.plan.inputs import Inputs, TokenizerSource
from submerge.engine.plan.tokens._donor_rows import DonorRows, RowOrigin, TokenRows
from submerge.engine.plan.tokens._model_tokens import ModelTokens, stored_tokens
from submerge.engine.plan.tokens._output_tokenizer import OutputTokenizer
from submerge.engine.plan.tokens._tables import token_rows, token_tables
from submerge.engine.plan.tokens._token_keys import SPECIAL_ROLES, TokenKeys, token_keys
from submerge.engine.plan.tokens._token_origins import texts_by_id
from submerge.engine.plan.tokens._tokenizer_class import tokenizer_class
from submerge.engine.plan.tokens._vocabulary import OutputVocabulary, SpecialIds
from submerge.engine.plan.tokens._vocabulary_planner import VocabularyPlanner
from submerge.errors import Problem, few
from submerge.recipe import NewTokens, Recipe
from submerge.store import Checkpoint, optional_json, text_parts

__all__ = ["plan_transplant"]


def plan_transplant(
    recipe: Recipe, inputs: Inputs, source: TokenizerSource
) -> tuple[OutputVocabulary | None, list[Problem]]:
    """Return the vocabulary of a donor for the models of a recipe, and what is wrong with it.

    A token that a model has, too, keeps the model's row: one of the same bytes of text, whatever way the two
    tokenizers write it, or a special token of the same text or else the same role. The rows of all others are
    approximated as the recipe says of its `new_tokens`.
    """
    return _DonorTokens(recipe, inputs, source).plan()


class _DonorTokens(VocabularyPlanner):
    """The tokens of a donor, in the place of the models' own."""

    @property
    def settings(self) -> NewTokens:
        """How the rows of new tokens are approximated."""
        return self.recipe.tokenizer.new_tokens or NewTokens()

    def vocabulary(self) -> OutputVocabulary | None:
        """Return the vocabulary; problems are noted or raised."""
        involved = self.inputs.involved.items()
        self._check_donor()
        for _, model in involved:
            self.problems += _model_problems(model)
        if self.problems:
            return None
        folder = self.source.model.tokenizer.folder
        tokens = stored_tokens(folder)
        reference = self.inputs.reference_model
        kind, warnings = tokenizer_class(self.source.model.tokenizer, self.source.label, reference)
        self.warnings += warnings
        donor = token_keys(folder, tokens)
        own = {position: self._keys(model) for position, model in involved}
        rows = {position: self._rows(keys, donor) for position, keys in own.items()}
        for position, of_model in rows.items():
            if not of_model.shared:
                what = f"no token of {self.source.label} is one of its own"
                where = self.inputs.models[position].label
                self.problems.append(Problem(what, where, "choose another donor"))
        texts = texts_by_id(tokens.ids)
        special = self._special_ids(donor)
        return OutputVocabulary(
            tokenizer=OutputTokenizer(self.source.model.tokenizer, tokens.ids, kind=kind),
            origins=DonorRows(self.source.model, texts, rows, self.settings),
            rows=self.padded(len(texts)),
            ids={position: _moved(keys, donor) for position, keys in own.items()},
            lines=tuple(self._lines(tokens, rows)),
            warnings=tuple(self.warnings),
            special=special,
        )

    def _check_donor(self) -> None:
        """Note what a donor lacks: a tokenizer, or a table for methods that read one."""
        donor = self.source.model
        if not donor.tokenizer.complete:
            what = "there is no tokenizer here to take"
            self.problems.append(Problem(what, self.source.label, "name a donor that has one"))
        if self.settings.method == "omp" and not self._donor_rows:
            what = "it has no embeddings, by which its tokens would be compared"
            hint = "name a donor with weights, or choose the method subword or mean"
            self.problems.append(Problem(what, self.source.label, hint))

    @cached_property
    def _donor_rows(self) -> int:
        """The rows of the donor's tables; 0 where there are none, or none is needed."""
        tensors = self.source.model.tensors
        rows = token_rows(tensors) or 0
        return rows if self.settings.method == "omp" and token_tables(tensors, rows) else 0

    def _keys(self, model: Checkpoint) -> TokenKeys:
        """Return what a model's tokens stand for, of those that its tables have rows for."""
        tokens = stored_tokens(model.tokenizer.folder)
        within = ModelTokens(self.ids_with_rows(tokens, model), tokens.added)
        return token_keys(model.tokenizer.folder, within)

    def _rows(self, own: TokenKeys, donor: TokenKeys) -> TokenRows:
        origins: dict[int, RowOrigin] = {}
        for id_, key in sorted(donor.keys.items()):
            row = own.find(key, donor.roles)
            origins[id_] = self._new(id_, own, donor) if row is None else row
        used = set(_moved(own, donor))
        return TokenRows(origins, len(own.keys) - len(used))

    def _new(self, id_: int, own: TokenKeys, donor: TokenKeys) -> RowOrigin:
        """Return where the row of a token comes from that a model lacks."""
        method = self.settings.method
        if method == "zero":
            return ()
        if method == "omp" and id_ < self._donor_rows:
            return "omp"
        pieces = own.pieces(donor.keys[id_]) if method != "mean" else []
        return tuple(pieces) or "mean"

    def _lines(self, tokens: ModelTokens, rows: Mapping[int, TokenRows]) -> Iterator[str]:
        """Yield what is said of the donor's tokens in each model."""
        yield f"output: {len(tokens.ids)} tokens of {self.source.label}"
        for position, own in rows.items():
            counts = own.counts
            new = [f"{count} by {name}" for name, count in counts.items() if name != "shared"]
            yield (
                f"{self.inputs.models[position].label}: {counts['shared']} of them shared"
                f"{''.join(f', {part}' for part in new)}; {own.unused} of its own have no use"
            )
        left = [text for text, id_ in tokens.ids.items() if id_ >= self._donor_rows]
        if self.settings.method == "omp" and left:
            what = f"{len(left)} of its tokens have no row in its embedding ({few(map(repr, left))})"
            self.warnings.append(f"{self.source.label}: {what}, and are approximated by their pieces")

    def _special_ids(self, donor: TokenKeys) -> SpecialIds:
        """Return the ids of a donor's special tokens: those of its configurations, else of its tokenizer."""
        folder = self.source.model.path
        config: Mapping[str, Any] = {}
        for part in text_parts(optional_json(folder / "config.json")):
            config = {**config, **{key: value for key, value in part.items() if value is not None}}
        named = {role: donor.ids.get(text) for role, text in donor.roles.items()}
        keys = {f"{role}_token_id": config.get(f"{role}_token_id", named.get(role)) for role in SPECIAL_ROLES}
        if keys["eos_token_id"] is None:
            self.warnings.append(f"{self.source.label}: it names no token that ends a text")
        generation = optional_json(folder / "generation_config.json")
        return SpecialIds(keys, {key: generation.get(key, value) for key, value in keys.items()})


def _moved(own: TokenKeys, donor: TokenKeys) -> dict[int, int]:
    """Return where each row of a model is in the output, for the tokens that a donor has."""
    rows = ((own.find(key, donor.roles), id_) for id_, key in sorted(donor.keys.items(), reverse=True))
    return {row: id_ for row, id_ in rows if row is not None}


def _model_problems(model: Checkpoint) -> Iterator[Problem]:
    """Yield why a model cannot get another tokenizer."""
    rows = token_rows(model.tensors)
    tables = token_tables(model.tensors, rows) if rows else []
    if not tables:
        what = "none of its tensors is known to have a row for each token"
        yield Problem(what, model.label, "name a language model")
    if not model.tokenizer.complete:
        what = "there is no tokenizer here that says what its rows are"
        yield Problem(what, model.label, "save the tokenizer beside the weights")
