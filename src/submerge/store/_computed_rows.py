"""Rows of tables that no file has: they are computed from rows of models whenever they are read."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from submerge.deferred import torch
from submerge.store.format import ComputedSource, FileTable, Once, Source, read_elements, torch_dtype

__all__ = ["ComputedRows", "GatheredRows", "MeanOfRows", "RowSource", "TableRows"]

_BLOCK = 1 << 20
"""Elements of a table that are held at a time."""


class RowSource(Protocol):
    """Opens rows that are computed."""

    def open(self, table: FileTable) -> Source:
        """Return where to read them, by ranges of their elements."""


@dataclass(frozen=True)
class TableRows:
    """Rows of a stored table, from the element `start` on, of the type `dtype`."""

    open: Callable[[FileTable], Source]
    start: int
    dtype: str


@dataclass(frozen=True)
class ComputedRows:
    """The mean of equally many rows of several tables, in the type `dtype`; zero where there are none.

    Of one table it is the rows themselves, in another type. Sums are in float32, or in float64 where a table
    is.
    """

    of: Sequence[TableRows]
    dtype: str

    def open(self, table: FileTable) -> Source:
        """Return where to read them."""
        return ComputedSource(partial(self._mean, [rows.open(table) for rows in self.of]))

    def _mean(self, sources: Sequence[Source], start: int, count: int) -> torch.Tensor:
        wide = any(rows.dtype == "F64" for rows in self.of)
        total = torch.zeros(count, dtype=torch.float64 if wide else torch.float32)
        for source, rows in zip(sources, self.of, strict=True):
            total += read_elements(source, rows.dtype, rows.start + start, count)
        if len(self.of) > 1:
            total /= len(self.of)
        return total.to(torch_dtype(self.dtype))


@dataclass(frozen=True)
class GatheredRows:
    """Rows of several tables of one type, in runs: for tables whose rows are too mixed for a view.

    Run k begins at the row `starts[k]`, and is read from `sources[which[k]]`, from its row `first[k]` on. A
    row has `width` elements of `itemsize` bytes.
    """

    sources: Sequence[RowSource]
    starts: Sequence[int]
    which: Sequence[int]
    first: Sequence[int]
    width: int
    itemsize: int

    def open(self, table: FileTable) -> Source:
        """Return where to read them."""
        return _GatherSource(self, [source.open(table) for source in self.sources])


class _GatherSource:
    def __init__(self, rows: GatheredRows, sources: Sequence[Source]) -> None:
        self._rows, self._sources = rows, sources

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`."""
        rows, out, at, stop = self._rows, into.cast("B"), start, start + count
        run = bisect_right(rows.starts, start // rows.width) - 1
        while at < stop:
            last = run + 1 == len(rows.starts)
            end = stop if last else min(stop, rows.starts[run + 1] * rows.width)
            target = out[(at - start) * rows.itemsize : (end - start) * rows.itemsize]
            of_source = (rows.first[run] - rows.starts[run]) * rows.width + at
            self._sources[rows.which[run]].read(of_source, end - at, target)
            at, run = end, run + 1


@dataclass(frozen=True)
class MeanOfRows:
    """The mean row of a table, as often as it is read: μ = 1/V Σ_v w_v, summed in float64.

    The table has V rows of `shape[1:]`. It is read once in a process, and only where the mean is asked for.
    """

    table: Callable[[FileTable], Source]
    shape: tuple[int, ...]
    dtype: str
    _mean: Once[torch.Tensor] = field(default_factory=Once, compare=False, repr=False)

    def open(self, table: FileTable) -> Source:
        """Return where to read it."""
        return ComputedSource(partial(self._repeated, table))

    def _repeated(self, table: FileTable, start: int, count: int) -> torch.Tensor:
        """Return elements of rows that are all alike."""
        mean = self.value(table)
        return mean[torch.arange(start, start + count) % mean.numel()]

    def value(self, table: FileTable) -> torch.Tensor:
        """Return μ, flat, in the table's type."""
        return self._mean.of(lambda: self._computed(table))

    def _computed(self, table: FileTable) -> torch.Tensor:
        rows, width = self.shape[0], math.prod(self.shape[1:])
        source, step = self.table(table), max(1, _BLOCK // max(1, width))
        total = torch.zeros(width, dtype=torch.float64)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            values = read_elements(source, self.dtype, first * width, count * width)
            total += values.view(count, width).double().sum(0)
        return (total / max(1, rows)).to(torch_dtype(self.dtype))
