"""Which model's rows a table has for the tokens of a composed model's tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tokens._shared_tokens import SharedToken, SharedTokens
from submerge.engine.plan.tokens._table_rows import ModelTables, RowRun, Run, joined_runs
from submerge.errors import Problem, RequestError

__all__ = ["RowRuns"]


@dataclass(frozen=True)
class RowRuns:
    """Tells where the rows of models' tables come from; `embedding` is the table that every model has."""

    inputs: Inputs
    tokens: SharedTokens
    embedding: str

    @property
    def rows(self) -> int:
        """How many rows every table has."""
        return self.tokens.rows

    @property
    def _tables(self) -> ModelTables:
        return ModelTables(self.inputs, self.embedding)

    def of(self, position: int, name: str) -> list[RowRun]:
        """Return the rows of a model's table: its own, and for tokens that it lacks those of the base.

        Raises `RequestError` for a token that no model has a row for.
        """
        places = {token.id: self._of_base(name, token) for token in self.tokens.added}
        if self._tables.is_base(position, name):
            position = self.inputs.reference
        own = self._tables.all_rows(position, name)
        assert own is not None  # the model has the table
        number = self.numbers.get(position)
        for token in self.tokens.added:
            row = None if number is None else token.owners.get(number)
            if row is not None and row < own.count and position != self.inputs.reference:
                places[token.id] = RowRun(position, own.table, row, 1)
        return joined_runs(self._between(own, name, places))

    @cached_property
    def numbers(self) -> dict[int, int]:
        """The specialist's number of each participant, by its position."""
        return {position: self._models.index(position) for position in self._models}

    @property
    def _models(self) -> Sequence[int]:
        """The specialists' positions; a method may see the base before them."""
        return [own.model for own in self.inputs.specialists] or self.inputs.participants

    def is_own(self, position: int, name: str, runs: Sequence[Run]) -> bool:
        """Return whether rows are all of a model's table, as they lie."""
        return list(runs) == [self._tables.all_rows(position, name)]

    def gives(self, position: int, rows: Collection[int]) -> bool:
        """Return whether other models get any of these rows: those of tokens that the specialist adds."""
        number = self.numbers.get(position)
        return number is not None and any(row in rows for row in self.tokens.ids(number))

    def names(self, position: int, row: int) -> bool:
        """Return whether a row of a model's tables is one of its tokens', or stays where it is."""
        number = self.numbers.get(position)
        if number is not None and row in self.tokens.ids(number):
            return True
        return row < self.tokens.rows and all(row != token.id for token in self.tokens.added)

    def _of_base(self, name: str, token: SharedToken) -> RowRun:
        """Return the base's row for a token that it lacks: that of the first specialist that has one."""
        for number, row in token.owners.items():
            position = self._models[number]
            is_base = self._tables.is_base(position, name)
            rows = None if is_base else self._tables.all_rows(position, name)
            if rows is not None and row < rows.count:
                return RowRun(position, rows.table, row, 1)
        raise RequestError(self._without_row(name, token))

    def _without_row(self, name: str, token: SharedToken) -> Problem:
        """Return why there is no row: owners have none, or rows of another width, as other models have."""
        base, width = self.inputs.reference_model, self._tables.width(name)
        for model in (self.inputs.models[self._models[number]] for number in token.owners):
            own = model.tensors.get(name)
            if own is not None and own.shape[1:] != width:
                what = f"a row of {name} is {list(own.shape[1:])} here, and {list(width)} in {base.label}"
                return Problem(what, model.label, "merge specialists of one language model")
        what = f"no model has a row of {name} for {token.text!r}"
        hint = "give the specialist that has the token this row (transformers: resize_token_embeddings)"
        return Problem(what, base.label, hint)

    def _between(self, own: RowRun, name: str, places: Mapping[int, RowRun]) -> Iterator[RowRun]:
        """Yield the rows of new tokens by their ids, and between them the model's own, then the base's."""
        base = self._tables.all_rows(self.inputs.reference, name)
        at = 0
        for id_ in (*sorted(places), self.tokens.rows):
            yield RowRun(own.model, own.table, at, min(id_, own.count) - at)
            if base is not None:
                beyond = max(at, own.count)
                yield RowRun(base.model, base.table, beyond, min(id_, base.count) - beyond)
            if id_ in places:
                yield places[id_]
            at = id_ + 1
