"""Where the rows of tables come from when a model gets another model's tokenizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

from submerge.algebra import pursuit_bytes
from submerge.deferred import np
from submerge.engine.plan.tokens._table_rows import ComputedRun, MeanRun
from submerge.engine.plan.tokens._tables import is_head, token_rows, token_tables
from submerge.engine.plan.tokens._token_origins import OriginSpan
from submerge.recipe import NewTokens
from submerge.store import ApproximatedRows, Checkpoint, DonorCodes, FileTable, MeanOfRows, StoredTable

__all__ = ["ComputedSpan", "DonorRows", "RowOrigin", "TokenRows", "donor_table"]


@dataclass(frozen=True)
class ComputedSpan:
    """Rows that follow each other, and that are computed: of `omp` those from `first` on, or the mean row."""

    method: Literal["omp", "mean"]
    first: int
    count: int


RowOrigin: TypeAlias = int | tuple[int, ...] | Literal["omp", "mean"]
"""A row of a model's table; rows whose mean it is (none: zeros); or how it is computed."""


@dataclass(frozen=True)
class TokenRows:
    """Where a model's rows for a donor's tokens come from, by the donor's ids; `unused` of its own do not."""

    origins: Mapping[int, RowOrigin]
    unused: int = 0

    @property
    def shared(self) -> dict[int, int]:
        """The model's row of each token that it has, too."""
        return {id_: origin for id_, origin in self.origins.items() if isinstance(origin, int)}

    @property
    def counts(self) -> dict[str, int]:
        """How many tokens are `shared`, and how many rows each method gives."""
        return {"shared": 0, **Counter(map(_kind, self.origins.values()))}

    @property
    def pursued(self) -> list[int]:
        """The tokens that are combinations of shared ones, in the order of their rows."""
        return [id_ for id_, origin in self.origins.items() if origin == "omp"]

    def spans(self, position: int, rows: int) -> Iterator[OriginSpan | ComputedSpan]:
        """Yield the origins of so many rows of the model at a position, as spans."""
        place = {id_: number for number, id_ in enumerate(self.pursued)}
        numbers = np.array([self._number(id_, place) for id_ in range(rows)], dtype=np.int64)
        starts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), rows]
        for start, stop in pairwise(starts):
            origin = self.origins.get(start, ())
            if isinstance(origin, str):
                yield ComputedSpan(origin, place.get(start, 0), stop - start)
            else:
                own = (origin,) if isinstance(origin, int) else origin
                yield OriginSpan(tuple((position, row) for row in own), stop - start)

    def _number(self, id_: int, place: Mapping[int, int]) -> int:
        """Return a number that follows that of the row before where both are one span."""
        origin = self.origins.get(id_, ())
        if isinstance(origin, int):
            return origin
        if isinstance(origin, tuple):
            return -3 * id_ - 9
        return (1 << 40) + place[id_] if origin == "omp" else (1 << 41) + id_


@dataclass(frozen=True)
class DonorRows:
    """The rows of models' tables for the tokens of a donor.

    Attributes:
        donor: the model whose tokenizer is taken; without tensors where no method reads them.
        texts: its tokens by their ids.
        models: where the rows of each model come from, by its position.
        settings: how rows of new tokens are approximated.
        approximated: those by `omp`, by the position of a model and a tensor's name; they are known once the
            tables are laid over the models.
    """

    donor: Checkpoint
    texts: Sequence[str | None]
    models: Mapping[int, TokenRows]
    settings: NewTokens
    approximated: dict[tuple[int, str], ApproximatedRows] = field(default_factory=dict)
    _codes: dict[tuple[int, str], DonorCodes] = field(default_factory=dict)
    _means: dict[tuple[int, str], MeanOfRows] = field(default_factory=dict)

    def of(self, position: int) -> Iterator[OriginSpan | ComputedSpan]:
        """Yield where the rows of a model's table come from."""
        return self.models[position].spans(position, len(self.texts))

    def run(
        self, span: ComputedSpan, position: int, model: Checkpoint, name: str, table: str
    ) -> ComputedRun | MeanRun:
        """Return computed rows for the tensor `name` of a model, from those of its `table`.

        The table of the donor is its embedding, or for an output head its head. A bias of new tokens is 0.
        """
        entry, key = model.tensors[table], (position, name)
        stored = StoredTable(partial(model.source, table), entry.shape, entry.dtype)
        if span.method == "mean":
            if key not in self._means:
                self._means[key] = MeanOfRows(stored.open, stored.shape, stored.dtype)
            return ComputedRun(self._means[key], f"mean of {table}", 0, span.count)
        if len(entry.shape) == 1:
            return MeanRun((), span.count)
        if key not in self.approximated:
            codes = self._of_donor(position, donor_table(self.donor, name))
            shared = list(self.models[position].shared.values())
            self.approximated[key] = ApproximatedRows(stored, shared, codes)
        what = f"omp of {self.settings.k} from {self.donor.label}"
        return ComputedRun(self.approximated[key], what, span.first, span.count)

    def _of_donor(self, position: int, table: str) -> DonorCodes:
        """Return the codes in a table of the donor: one object for all tables of a model that need them."""
        rows, entry = self.models[position], self.donor.tensors[table]
        if (position, table) not in self._codes:
            stored = StoredTable(partial(self.donor.source, table), entry.shape, entry.dtype)
            codes = DonorCodes(stored, rows.pursued, list(rows.shared), self.settings.k)
            self._codes[position, table] = codes
        return self._codes[position, table]

    def memory(self, threads: int) -> int:
        """Return the bytes that approximating rows holds at most, and that the rows hold from then on.

        Of a donor's table it holds rows as they are stored, and their directions; of a model's, rows as they
        are stored, and those that are new; besides what each thread works on.
        """
        codes, rows = self._codes.values(), self.approximated.values()
        donors = [2 * math.prod(own.donor.shape) for own in codes]
        models = [2 * len(self.texts) * own.table.shape[1] for own in rows]
        work = [pursuit_bytes(len(own.new), own.donor.shape[1], own.k) for own in codes]
        return 4 * sum([*donors, *models]) + threads * max(work, default=0)

    def approximate(self, threads: int) -> None:
        """Compute all rows, so that they are there when they are read."""
        with FileTable() as files:
            for rows in self.approximated.values():
                rows.value(files, threads)

    def residuals(self) -> dict[str, float]:
        """Return for each tensor with rows by `omp` their mean relative residual in the donor's table."""
        with FileTable() as files:
            codes = {name: rows.codes.value(files) for (_, name), rows in self.approximated.items()}
        return {name: float(own.residuals.mean()) for name, own in codes.items()}


def _kind(origin: RowOrigin) -> str:
    if isinstance(origin, int):
        return "shared"
    return origin if isinstance(origin, str) else "subword" if origin else "zero"


def donor_table(donor: Checkpoint, name: str) -> str:
    """Return the donor's table for one of a model's: its head for a head, or else its embedding."""
    tables = token_tables(donor.tensors, token_rows(donor.tensors) or 0)
    heads = [table for table in tables if is_head(table) and len(donor.tensors[table].shape) == 2]
    return heads[0] if heads and is_head(name) else tables[0]
