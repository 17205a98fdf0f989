"""Models whose tables have a row for each token of a shared tokenizer, as views of all their files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tokens._folded_tables import with_folded_tables
from submerge.engine.plan.tokens._row_runs import RowRuns
from submerge.engine.plan.tokens._shared_tokens import SharedTokens
from submerge.engine.plan.tokens._table_rows import ComputedRun, MeanRun, PaddingRun, RowRun, Run, TableRuns
from submerge.engine.plan.tokens._tables import token_rows, token_tables
from submerge.names import View
from submerge.store import (
    DTYPES,
    Checkpoint,
    ComputedRows,
    GatheredRows,
    InMemory,
    MeanOfRows,
    RowSource,
    TableRows,
    TensorEntry,
    digest,
    with_vocabulary_size,
)

__all__ = ["embedding_of", "with_rows", "with_token_rows"]

_MANY = 512
"""Runs of rows beyond which a table is gathered row by row."""


def with_token_rows(inputs: Inputs, tokens: SharedTokens) -> Inputs:
    """Return the inputs with a row for each shared token in every table of the base and of the participants.

    `inputs` are under the reference's names, and participant n is specialist n of `tokens`. A table of the
    base, W_0 [V, d], becomes W_0' [V', d]: rows of tokens that it lacks are those of the first specialist
    that has them. A table of a specialist becomes W_n' [V', d]: its own rows at the ids that its tokens have
    now, and those of W_0' for tokens that it lacks. So W_n' − W_0' is zero where a specialist has no token.
    Rows are as they were trained: what an adapter changes of a table is in W_n before rows move.

    Raises `RequestError` for a token without a row, and for a row that an adapter trained and no token has.
    """
    embedding = embedding_of(inputs.reference_model)
    if embedding is None:
        return inputs
    inputs = with_folded_tables(inputs, RowRuns(inputs, tokens, embedding))
    return with_rows(inputs, RowRuns(inputs, tokens, embedding))


def embedding_of(model: Checkpoint) -> str | None:
    """Return the table in which a model looks tokens up; None where none is known to hold them."""
    return next(iter(token_tables(model.tensors, token_rows(model.tensors) or 0)), None)


def with_rows(inputs: Inputs, runs: TableRuns) -> Inputs:
    """Return the inputs with tables of these rows, in the base and in every participant.

    Adapters have no updates beside tables that get other rows (`with_folded_tables`). No value is read: what
    is no view of rows as they are stored is computed when it is read.
    """
    tables = _TokenTables(inputs, runs)
    return inputs.of_models([tables.model(position) for position in range(len(inputs.models))])


@dataclass(frozen=True)
class _TokenTables:
    """Gives models tables with all rows.

    `entries` has one object for all tables of the same rows: by that a model under an adapter is known to be
    the base.
    """

    inputs: Inputs
    runs: TableRuns
    entries: dict[tuple[str, tuple[Run, ...]], TensorEntry] = field(default_factory=dict)

    def model(self, position: int) -> Checkpoint:
        """Return a model with all rows, or as it is where it is neither the base nor merged."""
        own = model = self.inputs.models[position]
        embedding = own.tensors.get(self.runs.embedding)
        if embedding is None or position not in self.inputs.involved:
            return model
        for name in token_tables(own.tensors, embedding.shape[0]):
            runs = self.runs.of(position, name)
            if not self.runs.is_own(position, name, runs):
                model = self._with_table(model, own, name, runs, position)
        if model.config is None or embedding.shape[0] == self.runs.rows:
            return model
        return replace(model, config=with_vocabulary_size(model.config, self.runs.rows))

    def _with_table(
        self, model: Checkpoint, own: Checkpoint, name: str, runs: Sequence[Run], position: int
    ) -> Checkpoint:
        """Return a model with one table made of these rows; `own` is the model as it was."""
        stored, dtype = model.stored or model, own.tensors[name].dtype
        pieces = self._pieces(runs, name, dtype, position)
        view = View.joined([piece.view for piece in pieces], 0)
        return replace(
            model,
            tensors={**model.tensors, name: self._entry(name, dtype, view, runs)},
            views={**model.views, name: view},
            token_tables=model.token_tables | {name},
            stored=_with_pieces(stored, pieces),
        )

    def _pieces(self, runs: Sequence[Run], name: str, dtype: str, position: int) -> list[_Piece]:
        pieces: list[_Piece] = []
        rows = [run for run in runs if not isinstance(run, PaddingRun)]
        if len(rows) > _MANY or any(isinstance(run, ComputedRun) for run in rows):
            pieces.append(self._gathered(rows, name, dtype))
        for run in runs[len(rows) :] if pieces else runs:
            assert not isinstance(run, ComputedRun)  # such rows are gathered
            pieces.append(self._piece(run, name, dtype, position, pieces))
        return pieces

    def _gathered(self, runs: Sequence[RowRun | MeanRun | ComputedRun], name: str, dtype: str) -> _Piece:
        """Return rows of many runs as one tensor: a view would have a block for each."""
        sources: dict[tuple[int, str] | MeanRun | RowSource, RowSource] = {}
        keys: list[tuple[int, str] | MeanRun | RowSource] = []
        for run in runs:
            key = self._source_key(run)
            keys.append(key)
            if key not in sources:
                sources[key] = self._source(run, name, dtype)
        numbers = {key: number for number, key in enumerate(sources)}
        starts = [0, *accumulate(run.count for run in runs)]
        shape = (starts.pop(), *self.inputs.reference_model.tensors[name].shape[1:])
        rows = GatheredRows(
            sources=list(sources.values()),
            starts=starts,
            which=[numbers[key] for key in keys],
            first=[0 if isinstance(run, MeanRun) else run.start for run in runs],
            width=math.prod(shape[1:]),
            itemsize=DTYPES[dtype].itemsize,
        )
        order = digest(repr([(run, start) for run, start in zip(runs, starts, strict=True)]).encode())
        return _piece_of(f"{shape[0]} rows of {name} in {len(runs)} runs ({order})", shape, dtype, rows)

    def _source_key(self, run: RowRun | MeanRun | ComputedRun) -> tuple[int, str] | MeanRun | RowSource:
        """Return what is one for all runs that are read from one source."""
        if isinstance(run, ComputedRun):
            return run.rows
        return run if isinstance(run, MeanRun) else (run.model, run.table)

    def _source(self, run: RowRun | MeanRun | ComputedRun, name: str, dtype: str) -> RowSource:
        if isinstance(run, ComputedRun):
            return run.rows
        return self._mean(run.of if isinstance(run, MeanRun) else (replace(run, start=0),), name, dtype)

    def _entry(self, name: str, dtype: str, view: View, runs: Sequence[Run]) -> TensorEntry:
        entry = TensorEntry.in_memory(name, dtype, view.shape)
        # rows that fill up are the mean of one model's own, and runs say of what
        return self.entries.setdefault((name, tuple(runs)), entry)

    def _piece(
        self,
        run: RowRun | MeanRun | PaddingRun,
        name: str,
        dtype: str,
        position: int,
        before: Sequence[_Piece],
    ) -> _Piece:
        """Return rows as a view of tensors as they are stored, or of rows that are computed from them."""
        if isinstance(run, PaddingRun):
            return self._padding(run, name, dtype, position, before)
        if isinstance(run, MeanRun):
            return self._computed(run.of, run.count, name, dtype)
        model = self.inputs.models[run.model]
        view = model.views.get(run.table) or View.of(run.table, model.tensors[run.table].shape)
        view = view.narrow(0, run.start, run.count)
        # what is no view may be a second name of a tied parameter, which the files do not have
        stored = (model.stored or model) if run.table in model.views else model
        is_own = run.model == position
        if is_own and all(source in (model.stored or model).tensors for source in view.sources):
            return _Piece(view)
        if model.tensors[run.table].dtype != dtype:
            return self._computed((run,), run.count, name, dtype)
        names = {source: f"{source} of model {run.model}" for source in view.sources}
        return _Piece(
            View(view.shape, tuple(replace(b, source=names[b.source]) for b in view.blocks)),
            {new: stored.tensors[source] for source, new in names.items()},
            {new: stored.memory[source] for source, new in names.items() if source in stored.memory},
            {new: stored.computed[source] for source, new in names.items() if source in stored.computed},
        )

    def _computed(self, of: Sequence[RowRun], count: int, name: str, dtype: str) -> _Piece:
        """Return the mean of rows, in the type of the table `name`, or zeros."""
        shape = (count, *self.inputs.reference_model.tensors[name].shape[1:])
        what = " and ".join(f"{run.table} of model {run.model} from row {run.start}" for run in of)
        what = f"{count} rows of {what or 'zeros'} for {name}"
        return _piece_of(what, shape, dtype, self._mean(of, name, dtype))

    def _mean(self, of: Sequence[RowRun], name: str, dtype: str) -> RowSource:
        """Return the mean of rows; those of one table in its own type are read as they lie."""
        width = math.prod(self.inputs.reference_model.tensors[name].shape[1:])
        parts = [
            TableRows(partial(model.source, run.table), run.start * width, model.tensors[run.table].dtype)
            for run in of
            for model in (self.inputs.models[run.model],)
        ]
        is_plain = len(parts) == 1 and (parts[0].start, parts[0].dtype) == (0, dtype)
        return parts[0] if is_plain else ComputedRows(parts, dtype)

    def _padding(
        self, run: PaddingRun, name: str, dtype: str, position: int, before: Sequence[_Piece]
    ) -> _Piece:
        """Return rows that are the mean of those before them."""
        view = View.joined([piece.view for piece in before], 0)
        model = self.inputs.models[position]
        table = f"the rows of {name} before"
        filled = Checkpoint(
            model.label,
            model.path,
            None,
            {table: TensorEntry.in_memory(table, dtype, view.shape)},
            {},
            views={table: view},
            stored=_with_pieces(model.stored or model, before),
        )
        mean = MeanOfRows(partial(filled.source, table), view.shape, dtype)
        shape = (run.count, *view.shape[1:])
        what = f"{run.count} rows that are the mean of {view.shape[0]} for {name}"
        return _piece_of(what, shape, dtype, mean)


@dataclass(frozen=True)
class _Piece:
    """Some rows as a view, and the tensors of other models, or of none, that it is made of."""

    view: View
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)
    memory: Mapping[str, InMemory] = field(default_factory=dict)
    computed: Mapping[str, RowSource] = field(default_factory=dict)


def _piece_of(name: str, shape: tuple[int, ...], dtype: str, rows: RowSource) -> _Piece:
    """Return rows that are computed as a piece of their own."""
    entry = TensorEntry.in_memory(name, dtype, shape)
    return _Piece(View.of(name, shape), {name: entry}, computed={name: rows})


def _with_pieces(stored: Checkpoint, pieces: Sequence[_Piece]) -> Checkpoint:
    """Return a model's stored tensors, and beside them those that pieces are made of."""
    return replace(
        stored,
        tensors={**stored.tensors, **{n: e for p in pieces for n, e in p.tensors.items()}},
        memory={**stored.memory, **{n: t for p in pieces for n, t in p.memory.items()}},
        computed={**stored.computed, **{n: r for p in pieces for n, r in p.computed.items()}},
    )
