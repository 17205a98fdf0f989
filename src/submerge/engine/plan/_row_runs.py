"""Which model's rows a table has for the tokens of a shared tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._shared_tokens import SharedToken, SharedTokens
from submerge.errors import Problem, RequestError
from submerge.store import Checkpoint, tied_embeddings

__all__ = ["RowRun", "RowRuns"]


@dataclass(frozen=True)
class RowRun:
    """Rows `start … start + count − 1` of a model's table, which follow each other in the new table, too."""

    model: int
    table: str
    start: int
    count: int


@dataclass(frozen=True)
class RowRuns:
    """Tells where the rows of models' tables come from; `embedding` is the table that every model has."""

    inputs: Inputs
    tokens: SharedTokens
    embedding: str

    def of(self, position: int, name: str) -> list[RowRun]:
        """Return the rows of a model's table: its own, and for tokens that it lacks those of the base.

        Raises `RequestError` for a token that no model has a row for.
        """
        places = {token.id: self._of_base(name, token) for token in self.tokens.added}
        if self._is_base(position, name):
            position = self.inputs.reference
        own = self._all_rows(position, name)
        assert own is not None  # the model has the table
        number = self.numbers.get(position)
        for token in self.tokens.added:
            row = None if number is None else token.owners.get(number)
            if row is not None and row < own.count and position != self.inputs.reference:
                places[token.id] = RowRun(position, own.table, row, 1)
        return _joined(self._between(own, name, places))

    @cached_property
    def numbers(self) -> dict[int, int]:
        """The specialist's number of each participant, by its position."""
        return {position: self._models.index(position) for position in self._models}

    @property
    def _models(self) -> Sequence[int]:
        """The specialists' positions; a method may see the base before them."""
        return [own.model for own in self.inputs.specialists] or self.inputs.participants

    def is_own(self, position: int, name: str, runs: list[RowRun]) -> bool:
        """Return whether rows are all of a model's table, as they lie."""
        return runs == [self._all_rows(position, name)]

    def _of_base(self, name: str, token: SharedToken) -> RowRun:
        """Return the base's row for a token that it lacks: that of the first specialist that has one."""
        for number, row in token.owners.items():
            position = self._models[number]
            rows = None if self._is_base(position, name) else self._all_rows(position, name)
            if rows is not None and row < rows.count:
                return RowRun(position, rows.table, row, 1)
        what = f"no model has a row of {name} for {token.text!r}"
        hint = "give the specialist that has the token this row (transformers: resize_token_embeddings)"
        raise RequestError(Problem(what, self.inputs.reference_model.label, hint))

    def _between(self, own: RowRun, name: str, places: Mapping[int, RowRun]) -> Iterator[RowRun]:
        """Yield the rows of new tokens by their ids, and between them the model's own, then the base's."""
        base = self._all_rows(self.inputs.reference, name)
        at = 0
        for id_ in (*sorted(places), self.tokens.rows):
            yield RowRun(own.model, own.table, at, min(id_, own.count) - at)
            if base is not None:
                beyond = max(at, own.count)
                yield RowRun(base.model, base.table, beyond, min(id_, base.count) - beyond)
            if id_ in places:
                yield places[id_]
            at = id_ + 1

    def _is_base(self, position: int, name: str) -> bool:
        """Return whether a model is an adapter on the base itself, which has no row of its own there."""
        own, base = self.inputs.models[position].tensors, self.inputs.reference_model.tensors
        return position != self.inputs.reference and name in own and own[name] is base.get(name)

    def _all_rows(self, position: int, name: str) -> RowRun | None:
        """Return all rows of a model's table, or None if it has none of this width.

        Where a head is not stored they are those of the embedding that it is tied to.
        """
        model = self.inputs.models[position]
        table = name if name in model.tensors else self.embedding if _ties(model) else None
        if table is None or table not in model.tensors or model.tensors[table].shape[1:] != self._width(name):
            return None
        return RowRun(position, table, 0, model.tensors[table].shape[0])

    def _width(self, name: str) -> tuple[int, ...]:
        """Return the shape of a row, in the base or else in the first model that has the table."""
        models = (self.inputs.reference_model, *self.inputs.models)
        return next(model.tensors[name].shape[1:] for model in models if name in model.tensors)


def _ties(model: Checkpoint) -> bool:
    return tied_embeddings(model.config) is not False


def _joined(runs: Iterator[RowRun]) -> list[RowRun]:
    """Return the runs that are not empty, those that continue another joined with it."""
    joined: list[RowRun] = []
    for run in runs:
        last = joined[-1] if joined else None
        if run.count <= 0:
            continue
        if last and (last.model, last.table, last.start + last.count) == (run.model, run.table, run.start):
            joined[-1] = RowRun(last.model, last.table, last.start, last.count + run.count)
        else:
            joined.append(run)
    return joined
