"""Where rows of a table come from: runs of a model's rows, their means, zeros, and rows that fill up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from submerge.engine.plan.inputs import Inputs
from submerge.store import Checkpoint, RowSource, tied_embeddings

__all__ = ["ComputedRun", "MeanRun", "ModelTables", "PaddingRun", "RowRun", "Run", "TableRuns", "joined_runs"]


@dataclass(frozen=True)
class RowRun:
    """Rows `start … start + count − 1` of a model's table, which follow each other in the new table, too."""

    model: int
    table: str
    start: int
    count: int


@dataclass(frozen=True)
class MeanRun:
    """The mean of equally many rows of several models; rows of zeros where there are none."""

    of: tuple[RowRun, ...]
    count: int


@dataclass(frozen=True)
class ComputedRun:
    """Rows `start … start + count − 1` of a table that is computed as a whole; `what` says how."""

    rows: RowSource = field(repr=False)
    what: str
    start: int
    count: int


@dataclass(frozen=True)
class PaddingRun:
    """Rows that no token has; each is the mean of all rows before them."""

    count: int


Run: TypeAlias = RowRun | MeanRun | ComputedRun | PaddingRun


class TableRuns(Protocol):
    """Tells, for the table of each model, where its rows come from."""

    @property
    def embedding(self) -> str:
        """The table that every model has."""

    @property
    def rows(self) -> int:
        """How many rows every table has."""

    def of(self, position: int, name: str) -> Sequence[Run]:
        """Return the rows of a model's table; raise `RequestError` for one that no model has."""

    def is_own(self, position: int, name: str, runs: Sequence[Run]) -> bool:
        """Return whether rows are all of a model's table, as they lie."""

    def gives(self, position: int, rows: Collection[int]) -> bool:
        """Return whether the tables of other models get any of these rows of a model's tables."""

    def names(self, position: int, row: int) -> bool:
        """Return whether a row of a model's tables is one of its tokens', or stays where it is."""


@dataclass(frozen=True)
class ModelTables:
    """The tables of all models, with a row for each token; `embedding` is the one that every model has."""

    inputs: Inputs
    embedding: str

    def all_rows(self, position: int, name: str) -> RowRun | None:
        """Return all rows of a model's table, or None if it has none of this width.

        Where a head is not stored they are those of the embedding that it is tied to.
        """
        model = self.inputs.models[position]
        table = name if name in model.tensors else self.embedding if _ties(model) else None
        if table is None or table not in model.tensors or model.tensors[table].shape[1:] != self.width(name):
            return None
        return RowRun(position, table, 0, model.tensors[table].shape[0])

    def is_base(self, position: int, name: str) -> bool:
        """Return whether a model is an adapter on the base itself, which has no row of its own there."""
        own, base = self.inputs.models[position].tensors, self.inputs.reference_model.tensors
        return position != self.inputs.reference and name in own and own[name] is base.get(name)

    def width(self, name: str) -> tuple[int, ...]:
        """Return the shape of a row, in the base or else in the first model that has the table."""
        models = (self.inputs.reference_model, *self.inputs.models)
        return next(model.tensors[name].shape[1:] for model in models if name in model.tensors)


def _ties(model: Checkpoint) -> bool:
    return tied_embeddings(model.config) is not False


def joined_runs(runs: Iterable[RowRun]) -> list[RowRun]:
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
