"""The vocabulary of the output where its models have several: its tokens, and the rows that each has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from submerge.engine.plan._inputs import Inputs, TokenizerSource
from submerge.engine.plan._model_tokens import ModelTokens, TokenFlags, stored_tokens
from submerge.engine.plan._output_tokenizer import PLAIN, OutputTokenizer, extend_tokenizer, united_tokens
from submerge.engine.plan._table_rows import MeanRun, ModelTables, PaddingRun, RowRun, Run, joined_runs
from submerge.engine.plan._tables import token_rows, token_tables
from submerge.engine.plan._token_origins import Origin, OriginSpan, TokenOrigins, places
from submerge.engine.plan._token_rows import embedding_of, with_rows
from submerge.errors import Problem, RequestError, few
from submerge.recipe import Recipe, same_model
from submerge.store import Checkpoint, Rows, tied_embeddings

__all__ = ["OutputVocabulary", "plan_vocabulary"]


@dataclass(frozen=True)
class OutputVocabulary:
    """The tokens of the output, and where their rows come from.

    Attributes:
        tokenizer: has the tokens.
        origins: of the rows of the tokens, in every model.
        rows: how many the tables have, with those that fill up.
        ids: for the position of each model, where its rows are now.
        lines: what is said of each model.
        warnings: what deserves a look.
        beyond: the tokens of models, by their ids there, that no model has a row for.
    """

    tokenizer: OutputTokenizer
    origins: TokenOrigins
    rows: int
    ids: Mapping[int, Mapping[int, int]]
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    beyond: Mapping[str, int] = field(default_factory=dict)

    def laid_over(self, inputs: Inputs) -> Inputs:
        """Return the inputs, which have the reference's names, with tables that have these rows.

        Raises `RequestError` where an adapter changes a table whose rows move, or a model lacks a table.
        """
        embedding = embedding_of(inputs.reference_model)
        assert embedding is not None  # of a model without one no vocabulary is planned
        inputs = inputs.of_models([_with_known_head(model) for model in inputs.models])
        return with_rows(inputs, VocabularyRows(ModelTables(inputs, embedding), self))


@dataclass(frozen=True)
class VocabularyRows:
    """Tells where the rows of models' tables come from, for the tokens of one vocabulary."""

    tables: ModelTables
    vocabulary: OutputVocabulary
    _spans: dict[int, list[OriginSpan]] = field(default_factory=dict)

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
        if position not in self._spans:
            self._spans[position] = list(self.vocabulary.origins.of(position))
        runs = list(_joined(self._run(span, position, name) for span in self._spans[position]))
        padding = self.rows - len(self.vocabulary.origins.texts)
        return [*runs, PaddingRun(padding)] if padding else runs

    def is_own(self, position: int, name: str, runs: Sequence[Run]) -> bool:
        """Return whether rows are all of a model's table, as they lie."""
        own = self.tables.all_rows(position, name)
        return own is not None and list(runs) == [self._of_base(own, name)]

    def moved(self, position: int, row: int) -> int | None:
        """Return where a row of a model's table is now; None where it is no token's any more."""
        return self.vocabulary.ids[position].get(row)

    def _run(self, span: OriginSpan, position: int, name: str) -> Run:
        for model, row in span.origin:
            if model != position:
                self._check_adapter(model, range(row, row + span.count), name)
        rows = tuple(self._rows(model, row, span.count, name) for model, row in span.origin)
        return rows[0] if len(rows) == 1 else MeanRun(rows, span.count)

    def _rows(self, model: int, row: int, count: int, name: str) -> RowRun:
        """Return rows of a model's table; raise `RequestError` where it has none, or too few."""
        own = self.tables.all_rows(model, name)
        if own is None or row + count > own.count:
            what = f"it has no rows of {name} for tokens {row} to {row + count - 1}"
            hint = "merge models of one architecture"
            raise RequestError(Problem(what, self.tables.inputs.models[model].label, hint))
        return self._of_base(RowRun(model, own.table, row, count), name)

    def _check_adapter(self, model: int, rows: range, name: str) -> None:
        """Raise `RequestError` where an adapter changes rows that other models are to have, too.

        They would have them as they were before.
        """
        adapter = self.tables.inputs.models[model].adapter
        part = adapter.parts.get(name) if adapter else None
        if adapter is None or part is None:
            return
        if not isinstance(part, Rows) or any(index in rows for index in part.indices):
            what = f"the adapter changes rows of {name} that other models lack"
            hint = "merge it into its model first: a recipe with merge_method: passthrough, this model alone"
            raise RequestError(Problem(what, str(adapter.path), hint))

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
    resized = [name for name in replaced if model.tensors[name].shape != under.tensors[name].shape]
    if not resized:
        return model
    saved = adapter.config.get("modules_to_save") or ()
    is_trained = any(f".{module}." in f".{name}" for module in saved for name in resized)
    is_one = adapter.config.get("ensure_weight_tying") or len(tables) > 1
    if is_trained and not is_one and tied_embeddings(model.config) is not False:
        what = f"it trained {resized[0]} apart from the head, whose rows for new tokens it does not hold"
        hint = "train it with ensure_weight_tying=True, or save the merged model"
        raise RequestError(Problem(what, str(adapter.path), hint))
    return replace(model, under=None)


def plan_vocabulary(
    recipe: Recipe, inputs: Inputs, source: TokenizerSource
) -> tuple[OutputVocabulary | None, list[Problem]]:
    """Return the vocabulary that the recipe asks for, and what is wrong with it.

    Rows are those of mergekit: in a model that lacks a token it is what the recipe says of it, else the
    base's, else the mean of all that have it. So the updates are zero where a model has no say.
    """
    planner = _Planner(recipe, inputs, source)
    try:
        vocabulary = planner.vocabulary()
    except RequestError as error:
        return None, [*planner.problems, *error.problems]
    return (None if planner.problems else vocabulary), planner.problems


@dataclass
class _Planner:
    recipe: Recipe
    inputs: Inputs
    source: TokenizerSource
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def vocabulary(self) -> OutputVocabulary:
        """Return the vocabulary; problems are noted or raised."""
        tokenizer = self._tokenizer()
        rules = self.recipe.tokenizer.tokens
        origins = TokenOrigins(
            ids=tokenizer.ids,
            models={position: self._rows_of(position) for position in self.inputs.involved},
            base=self.inputs.base,
            rules=rules,
            positions={rule.model: self._position(rule.model) for rule in rules.values() if rule.model},
            holes=self._holes(tokenizer),
        )
        self.problems += origins.problems()
        self._note_token_ids()
        beyond = self._beyond(origins.without_row)
        return OutputVocabulary(
            tokenizer=tokenizer,
            origins=origins,
            rows=self._rows(len(origins.texts)),
            ids={position: places(tokenizer.ids, self.tokens[position].ids) for position in self.tokens},
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
            self.warnings.append(f"{_count(tokenizer.unreached)} cannot be met in a text: {shown}")
        return tokenizer

    def _with_rows(self, position: int) -> ModelTokens:
        """Return the tokens of a model that its tables have rows for."""
        rows, added = self._rows_of(position), self.tokens[position].added
        return ModelTokens(rows, {text: flags for text, flags in added.items() if text in rows})

    def _rows_of(self, position: int) -> dict[str, int]:
        rows = token_rows(self.inputs.models[position].tensors) or 0
        return {text: id_ for text, id_ in self.tokens[position].ids.items() if id_ < rows}

    def _holes(self, tokenizer: OutputTokenizer) -> dict[int, Origin]:
        """Return the rows of ids without a token: the reference's own, where the tokenizer is."""
        reference = self.inputs.reference
        if self.inputs.reference_model.tokenizer.folder != tokenizer.files.folder:
            return {}
        used, rows = set(tokenizer.ids.values()), token_rows(self.inputs.reference_model.tensors) or 0
        last = max(used, default=-1)
        return {id_: ((reference, id_),) for id_ in range(min(last, rows)) if id_ not in used}

    def _rows(self, tokens: int) -> int:
        multiple = self.recipe.tokenizer.pad_to_multiple_of or 1
        return -(-tokens // multiple) * multiple

    def _position(self, spec: str) -> int:
        """Return the position of a model that a rule names."""
        names = [same_model(name) for name in self.inputs.specs]
        return names.index(same_model(spec))

    def _note_token_ids(self) -> None:
        """Note rules that name a row which a model does not have."""
        for rule in self.recipe.tokenizer.tokens.values():
            if rule.token_id is None or not rule.model:
                continue
            rows = token_rows(self.inputs.models[self._position(rule.model)].tensors) or 0
            if rule.token_id >= rows:
                what = f"{rule.model} has {rows} rows, and none for the id {rule.token_id}"
                self.problems.append(Problem(what, rule.where, "name a token's id"))

    def _beyond(self, texts: Sequence[str]) -> dict[str, int]:
        """Return those of tokens without a row that a model has; note that others get rows of zeros."""
        beyond = {
            text: tokens.ids[text] for tokens in self.tokens.values() for text in texts if text in tokens.ids
        }
        if others := [text for text in texts if text not in beyond]:
            what = f"{_count(others)} of no model have rows of zeros ({few(map(repr, others))})"
            self.warnings.append(f"{self.source.label}: {what}")
        return beyond

    def _lines(self, tokenizer: OutputTokenizer, origins: TokenOrigins) -> Iterator[str]:
        """Yield what is said of each model's tokens, and of the output's."""
        rows, tokens = self._rows(len(origins.texts)), len(tokenizer.ids)
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


def _count(texts: Sequence[str]) -> str:
    return "1 token" if len(texts) == 1 else f"{len(texts)} tokens"
