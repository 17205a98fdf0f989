"""The vocabulary of the output where its models have several: its tokens, and the rows that each has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tokens._donor_rows import ComputedSpan, DonorRows
from submerge.engine.plan.tokens._folded_tables import with_folded_tables
from submerge.engine.plan.tokens._logits_bias import with_flat_bias, with_row_bias
from submerge.engine.plan.tokens._output_tokenizer import OutputTokenizer
from submerge.engine.plan.tokens._table_rows import MeanRun, ModelTables, PaddingRun, RowRun, Run, joined_runs
from submerge.engine.plan.tokens._tables import is_head, token_rows, token_tables
from submerge.engine.plan.tokens._token_origins import OriginSpan, TokenOrigins
from submerge.engine.plan.tokens._token_rows import embedding_of, with_rows
from submerge.errors import Problem, RequestError, few
from submerge.store import Checkpoint, find_aliases, tied_embeddings

__all__ = ["OutputVocabulary", "SpecialIds", "VocabularyRows", "rows_hint", "with_known_heads"]


@dataclass(frozen=True)
class SpecialIds:
    """What a donor's `config.json` and `generation_config.json` call its special tokens: `eos_token_id`."""

    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputVocabulary:
    """The tokens of the output, and where their rows come from.

    Attributes:
        tokenizer: has the tokens.
        origins: of the rows of the tokens, in every model; `DonorRows` where the tokenizer is a donor's.
        rows: how many the tables have, with those that fill up.
        ids: for the position of each model, where its rows are now; None for those of no token any more.
        token_ids: what the configuration of the tokenizer's own model calls its tokens, by their keys.
        lines: what is said of each model.
        warnings: what deserves a look.
        beyond: the tokens of models, by their ids there, that no model has a row for.
        special: of a donor, the ids of its special tokens in the two configurations.
    """

    tokenizer: OutputTokenizer
    origins: TokenOrigins | DonorRows
    rows: int
    ids: Mapping[int, Mapping[int, int | None]]
    token_ids: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    beyond: Mapping[str, int] = field(default_factory=dict)
    special: SpecialIds = SpecialIds()

    @property
    def donor(self) -> DonorRows | None:
        """The rows of a donor's tokens, where the tokenizer is a donor's."""
        return self.origins if isinstance(self.origins, DonorRows) else None

    def laid_over(self, inputs: Inputs) -> Inputs:
        """Return the inputs, which have the reference's names, with tables that have these rows.

        A head that is tied to the embeddings in some models alone is a table of all of them by now. What
        adapters trained of a table is in it before rows move. Raises `RequestError` where a model lacks rows
        of a table, or an adapter trained rows that no token has.
        """
        embedding = embedding_of(inputs.reference_model)
        assert embedding is not None  # of a model without one no vocabulary is planned
        inputs = with_flat_bias(inputs)
        rows = VocabularyRows(ModelTables(inputs, embedding), self)
        inputs = with_folded_tables(inputs, rows)
        return with_row_bias(with_rows(inputs, replace(rows, tables=ModelTables(inputs, embedding))))


@dataclass(frozen=True)
class VocabularyRows:
    """Tells where the rows of models' tables come from, for the tokens of one vocabulary."""

    tables: ModelTables
    vocabulary: OutputVocabulary
    _spans: dict[int, list[OriginSpan | ComputedSpan]] = field(default_factory=dict)

    @property
    def embedding(self) -> str:
        """The table that every model has."""
        return self.tables.embedding

    @property
    def rows(self) -> int:
        """How many rows every table has."""
        return self.vocabulary.rows

    def of(self, position: int, name: str) -> list[Run]:
        """Return the rows of a model's table: of its own tokens, of others, and what fills up."""
        runs = list(_joined(self._run(span, position, name) for span in self._of(position)))
        padding = self.rows - len(self.vocabulary.origins.texts)
        return [*runs, PaddingRun(padding)] if padding else runs

    def is_own(self, position: int, name: str, runs: Sequence[Run]) -> bool:
        """Return whether rows are all of a model's table, as they lie."""
        own = self.tables.all_rows(position, name)
        return own is not None and list(runs) == [self._of_base(own, name)]

    def gives(self, position: int, rows: Collection[int]) -> bool:
        """Return whether the tables of other models get any of these rows of a model's tables."""
        others = (other for other in self.tables.inputs.involved if other != position)
        spans = (span for other in others for span in self._of(other) if isinstance(span, OriginSpan))
        given = [
            range(row, row + span.count) for span in spans for model, row in span.origin if model == position
        ]
        return any(row in run for run in given for row in rows)

    def names(self, position: int, row: int) -> bool:
        """Return whether a row of a model's tables is one of its tokens', which may be left out."""
        return self.vocabulary.donor is not None or row in self.vocabulary.ids[position]

    def _of(self, position: int) -> list[OriginSpan | ComputedSpan]:
        if position not in self._spans:
            self._spans[position] = list(self.vocabulary.origins.of(position))
        return self._spans[position]

    def _run(self, span: OriginSpan | ComputedSpan, position: int, name: str) -> Run:
        if isinstance(span, ComputedSpan):
            return self._computed(span, position, name)
        rows = tuple(self._rows(model, row, span.count, name) for model, row in span.origin)
        return rows[0] if len(rows) == 1 else MeanRun(rows, span.count)

    def _computed(self, span: ComputedSpan, position: int, name: str) -> Run:
        """Return rows that are computed from those of a model's own table."""
        own, donor = self.tables.all_rows(position, name), self.vocabulary.donor
        assert own is not None  # the model has the table
        assert donor is not None  # only its tokens have such rows
        return donor.run(span, position, self.tables.inputs.models[position], name, own.table)

    def _rows(self, model: int, row: int, count: int, name: str) -> RowRun:
        """Return rows of a model's table; raise `RequestError` where it has none, or too few."""
        own = self.tables.all_rows(model, name)
        if own is None or row + count > own.count:
            raise RequestError(self._without_rows(model, row, count, name))
        return self._of_base(RowRun(model, own.table, row, count), name)

    def _without_rows(self, model: int, row: int, count: int, name: str) -> Problem:
        """Return why a model has no rows of a table for some of its tokens.

        PEFT saves of a resized model those tables alone that an adapter changes.
        """
        opened = self.tables.inputs.models[model]
        tokens = f"tokens {row} to {row + count - 1}" if count > 1 else f"token {row}"
        hint = "merge models of one architecture"
        if (adapter := opened.adapter) is not None and adapter.replaced:
            hint = rows_hint(name)
        return Problem(f"it has no rows of {name} for {tokens}", opened.label, hint)

    def _of_base(self, rows: RowRun, name: str) -> RowRun:
        """Return rows of an adapter on the base as the base's: they are the same tensor's."""
        if not self.tables.is_base(rows.model, name):
            return rows
        return RowRun(self.tables.inputs.reference, rows.table, rows.start, rows.count)


def _joined(runs: Iterator[Run]) -> Iterator[Run]:
    """Yield runs, those of one table that follow each other as one."""
    open_runs: list[RowRun] = []
    for run in runs:
        if isinstance(run, RowRun):
            open_runs.append(run)
            continue
        yield from joined_runs(open_runs)
        open_runs.clear()
        yield run
    yield from joined_runs(open_runs)


def rows_hint(name: str) -> str:
    """Return what to do where an adapter has no rows of a table for new tokens, which it did not train."""
    return (
        f"its adapter was saved without {name}: save the resized model that it was trained on, with its "
        "tokenizer, and write model+adapter; or train this, too"
    )


def with_known_heads(inputs: Inputs) -> Inputs:
    """Return the inputs, in which heads that are tied to tables of other rows than before are those tables.

    Raises `RequestError` for an adapter that trained such a table apart from the head.
    """
    return inputs.of_models([_with_known_head(model) for model in inputs.models])


def _with_known_head(model: Checkpoint) -> Checkpoint:
    """Return a model in which a head that is tied to a table of other rows than before is that table.

    PEFT saves a table of other rows with any adapter, and the head that is tied to it is the same. One that
    was trained apart (`modules_to_save`) has a head with the rows from before, of which new ones are not
    known: raise `RequestError`.
    """
    adapter, under = model.adapter, model.under
    if adapter is None or under is None:
        return model
    tables = token_tables(model.tensors, token_rows(model.tensors) or 0)
    replaced = [name for name in tables if name in adapter.replaced]
    resized = [
        name
        for name in replaced
        if name in adapter.folded or model.tensors[name].shape != under.tensors[name].shape
    ]
    if not resized:
        return model
    saved = adapter.config.get("modules_to_save") or ()
    is_trained = any(f".{module}." in f".{name}" for module in saved for name in resized)
    is_one = adapter.config.get("ensure_weight_tying") or len(tables) > 1
    if is_trained and not is_one and tied_embeddings(model.config) is not False:
        what = f"it trained {resized[0]} apart from the head, whose rows for new tokens it does not hold"
        hint = (
            "train it with ensure_weight_tying=True and lm_head in modules_to_save, or save the merged model"
        )
        raise RequestError(Problem(what, str(adapter.path), hint))
    if is_trained and (others := _lacking(model, resized)):
        what = f"it trained a copy of {resized[0]}, which {few(others)} do not use, and has no rows of these"
        hint = (
            f"train it without {resized[0].removesuffix('.weight')} in modules_to_save; or rules: {{shape: "
            "base, vocabulary: by-position}, without a tokenizer_source, leaves its tables out"
        )
        raise RequestError(Problem(what, str(adapter.path), hint))
    return replace(model, under=None)


def _lacking(model: Checkpoint, tables: Sequence[str]) -> list[str]:
    """Return the names by which encoders and decoders look up a table, as T5's, and that the model lacks.

    PEFT trains of such a table a copy, with `ensure_weight_tying`, too, and these stay what they were.
    """
    groups = find_aliases(model.config, model.shapes, ask=True).groups
    tied = (group.names for group in groups if {*tables} & {*group.names})
    return [name for names in tied for name in names if name not in model.tensors and not is_head(name)]
