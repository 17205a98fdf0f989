"""Rows of a model's table for tokens that only another model has: combinations of rows of shared tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from submerge.algebra import SparseCodes, matching_pursuit
from submerge.deferred import torch
from submerge.store.format import ComputedSource, FileTable, Once, Source, byte_view, torch_dtype

__all__ = ["ApproximatedRows", "DonorCodes", "StoredTable"]

_BLOCK = 1 << 22
"""Elements of rows that are combined at a time."""


@dataclass(frozen=True)
class StoredTable:
    """A table of a model: how it is opened, its shape [V, d], and its type."""

    open: Callable[[FileTable], Source]
    shape: tuple[int, ...]
    dtype: str

    def rows(self, numbers: Sequence[int], table: FileTable) -> torch.Tensor:
        """Return rows by their numbers, in the table's type; those that follow each other are read as one."""
        width = self.shape[1]
        wanted = torch.tensor(numbers, dtype=torch.int64)
        values = torch.empty(len(numbers), width, dtype=torch_dtype(self.dtype))
        breaks = torch.nonzero(wanted.diff() != 1)[:, 0] + 1
        source, starts = self.open(table), [0, *breaks.tolist()]
        for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
            if stop > start:
                part = values[start:stop]
                source.read(numbers[start] * width, part.numel(), byte_view(part))
        return values


@dataclass(frozen=True, eq=False)
class DonorCodes:
    """The codes of a donor's tokens over those that a model shares with it, in one table of the donor.

    They are computed once in a process, and only where they are asked for.

    Attributes:
        donor: its table.
        new: the rows there that are to be represented.
        shared: the rows there by which they are.
        k: how many of these a row has at most.
    """

    donor: StoredTable
    new: Sequence[int]
    shared: Sequence[int]
    k: int
    _codes: Once[SparseCodes] = field(default_factory=Once, repr=False)

    def value(self, table: FileTable, threads: int = 1) -> SparseCodes:
        """Return the codes, whose indices are places in `shared`."""
        return self._codes.of(lambda: self._computed(table, threads))

    def _computed(self, table: FileTable, threads: int) -> SparseCodes:
        targets, atoms = (self.donor.rows(rows, table) for rows in (self.new, self.shared))
        return matching_pursuit(targets, atoms, self.k, threads=threads)


@dataclass(frozen=True, eq=False)
class ApproximatedRows:
    """Rows that a model has for a donor's tokens: ŵ_i = Σ_j c_ij w_(s_ij), in the type of its table.

    Sums are in float64. All rows are computed when the first is read, and stay in memory.

    Attributes:
        table: the model's.
        shared: the rows there that the codes name, in their order.
        codes: s and c.
    """

    table: StoredTable
    shared: Sequence[int]
    codes: DonorCodes
    _rows: Once[torch.Tensor] = field(default_factory=Once, repr=False)

    def open(self, table: FileTable) -> Source:
        """Return where to read them."""
        return ComputedSource(lambda start, count: self.value(table).view(-1)[start : start + count])

    def value(self, table: FileTable, threads: int = 1) -> torch.Tensor:
        """Return the rows [n, d]."""
        return self._rows.of(lambda: self._combined(self.codes.value(table, threads), table))

    def _combined(self, codes: SparseCodes, table: FileTable) -> torch.Tensor:
        shared = self.table.rows(self.shared, table)
        step = max(1, _BLOCK // max(1, codes.indices.shape[1] * shared.shape[1]))
        parts = (torch.split(own, step) for own in (codes.indices, codes.coefficients))
        rows = [torch.bmm(c[:, None], shared[s].double())[:, 0] for s, c in zip(*parts, strict=True)]
        return torch.cat([part.to(shared.dtype) for part in rows])
