"""Models whose tables have a row for each token of a shared tokenizer, as views of all their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._row_runs import RowRun, RowRuns
from submerge.engine.plan._shared_tokens import SharedTokens
from submerge.engine.plan._tables import token_rows, token_tables
from submerge.errors import Problem, RequestError
from submerge.names import View
from submerge.store import (
    DTYPES,
    Adapter,
    Checkpoint,
    FileTable,
    InMemory,
    Rows,
    TensorEntry,
    read_values,
    rounded,
    with_vocabulary_size,
)

__all__ = ["with_token_rows"]


def with_token_rows(inputs: Inputs, tokens: SharedTokens) -> Inputs:
    """Return the inputs with a row for each shared token in every table of the base and of the participants.

    `inputs` are under the reference's names, and participant n is specialist n of `tokens`. A table of the
    base, W_0 [V, d], becomes W_0' [V', d]: rows of tokens that it lacks are those of the first specialist
    that has them. A table of a specialist becomes W_n' [V', d]: its own rows at the ids that its tokens have
    now, and those of W_0' for tokens that it lacks. So W_n' − W_0' is zero where a specialist has no token.
    Values are read only to bring rows to the type of another model's.

    Raises `RequestError` for a token without a row, and where an adapter changes a table whose rows move.
    """
    base = inputs.reference_model
    embedding = next(iter(token_tables(base.tensors, token_rows(base.tensors) or 0)), None)
    if embedding is None:
        return inputs
    tables = _TokenTables(inputs, tokens, RowRuns(inputs, tokens, embedding))
    return inputs.of_models([tables.model(position) for position in range(len(inputs.models))])


@dataclass(frozen=True)
class _TokenTables:
    """Gives models tables with all rows.

    `entries` has one object for all tables of the same rows: by that a model under an adapter is known to be
    the base.
    """

    inputs: Inputs
    tokens: SharedTokens
    runs: RowRuns
    entries: dict[tuple[str, tuple[RowRun, ...]], TensorEntry] = field(default_factory=dict)

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
        if model.config is None or embedding.shape[0] == self.tokens.rows:
            return model
        return replace(model, config=with_vocabulary_size(model.config, self.tokens.rows))

    def _with_table(
        self, model: Checkpoint, own: Checkpoint, name: str, runs: Sequence[RowRun], position: int
    ) -> Checkpoint:
        """Return a model with one table made of these rows; `own` is the model as it was."""
        stored, dtype = model.stored or model, own.tensors[name].dtype
        pieces = [self._piece(run, dtype, own=run.model == position) for run in runs]
        view = View.joined([piece.view for piece in pieces], 0)
        nbytes = DTYPES[dtype].itemsize * view.numel
        entry = TensorEntry(name, dtype, view.shape, None, 0, nbytes)
        others = [piece for piece in pieces if piece.tensors]
        return replace(
            model,
            tensors={**model.tensors, name: self.entries.setdefault((name, tuple(runs)), entry)},
            views={**model.views, name: view},
            token_tables=model.token_tables | {name},
            stored=replace(
                stored,
                tensors={**stored.tensors, **{n: e for p in others for n, e in p.tensors.items()}},
                memory={**stored.memory, **{n: t for p in others for n, t in p.memory.items()}},
            ),
            adapter=model.adapter
            and self._adapter(model.adapter, own, name, self.runs.numbers.get(position)),
        )

    def _piece(self, run: RowRun, dtype: str, *, own: bool) -> _Piece:
        """Return rows as a view of tensors as they are stored, those of another model under other names."""
        model = self.inputs.models[run.model]
        view = model.views.get(run.table) or View.of(run.table, model.tensors[run.table].shape)
        view = view.narrow(0, run.start, run.count)
        # what is no view may be a second name of a tied parameter, which the files do not have
        stored = (model.stored or model) if run.table in model.views else model
        if own and all(source in (model.stored or model).tensors for source in view.sources):
            return _Piece(view)
        if model.tensors[run.table].dtype != dtype:
            return _converted(model, run, dtype)
        names = {source: f"{source} of model {run.model}" for source in view.sources}
        return _Piece(
            View(view.shape, tuple(replace(b, source=names[b.source]) for b in view.blocks)),
            {new: stored.tensors[source] for source, new in names.items()},
            {new: stored.memory[source] for source, new in names.items() if source in stored.memory},
        )

    def _adapter(self, adapter: Adapter, own: Checkpoint, name: str, number: int | None) -> Adapter:
        """Return a model's adapter for a table of other rows: trained rows go where their tokens are now."""
        part = adapter.parts.get(name)
        if part is None:
            return adapter
        moved = self._moved(part, number) if isinstance(part, Rows) else None
        if moved is None:
            what = f"the adapter changes {name}, whose rows are others with the tokens of all specialists"
            hint = "merge it into its model first: a recipe with merge_method: passthrough, this model alone"
            raise RequestError(Problem(what, str(adapter.path), hint))
        return replace(adapter, parts={**adapter.parts, name: moved})

    def _moved(self, part: Rows, number: int | None) -> Rows | None:
        """Return trained rows at the ids that their tokens have now; None if one is no token's any more."""
        ids = {} if number is None else self.tokens.ids(number)
        others = {token.id for token in self.tokens.added}
        lost = [i for i in part.indices if i not in ids and (i in others or i >= self.tokens.rows)]
        return None if lost else replace(part, indices=tuple(ids.get(i, i) for i in part.indices))


@dataclass(frozen=True)
class _Piece:
    """Some rows as a view, and the tensors of other models that it is made of."""

    view: View
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)
    memory: Mapping[str, InMemory] = field(default_factory=dict)


def _converted(model: Checkpoint, run: RowRun, dtype: str) -> _Piece:
    """Return rows in another type, in memory; without values where those are not downloaded yet."""
    entry = model.tensors[run.table]
    width = entry.numel // max(1, entry.shape[0])
    shape = (run.count, *entry.shape[1:])
    name = f"rows {run.start} to {run.start + run.count} of {run.table} of model {run.model}"
    tensors = {name: TensorEntry(name, dtype, shape, None, 0, DTYPES[dtype].itemsize * run.count * width)}
    if model.pending:
        return _Piece(View.of(name, shape), tensors)
    with FileTable() as table:
        source = model.source(run.table, table)
        values = read_values(source, entry.dtype, run.start * width, run.count * width)
    return _Piece(View.of(name, shape), tensors, {name: rounded(values, dtype).reshape(shape)})
