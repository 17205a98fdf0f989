"""Rows of tables that no file has: they are computed from rows of models whenever they are read."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from submerge.deferred import torch
from submerge.store.format import DTYPES, FileTable, Source, byte_view

__all__ = ["ComputedRows", "GatheredRows", "MeanOfRows", "RowSource", "TableRows", "torch_type"]

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
        return _MeanSource([(rows.open(table), rows.start, rows.dtype) for rows in self.of], self.dtype)


class _MeanSource:
    def __init__(self, parts: Sequence[tuple[Source, int, str]], dtype: str) -> None:
        self._parts, self._dtype = parts, torch_type(dtype)
        wide = any(own == "F64" for _, _, own in parts)
        self._sum_dtype = torch.float64 if wide else torch.float32

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`."""
        total = torch.zeros(count, dtype=self._sum_dtype)
        for source, first, dtype in self._parts:
            values = torch.empty(count, dtype=torch_type(dtype))
            source.read(first + start, count, byte_view(values))
            total += values
        if len(self._parts) > 1:
            total /= len(self._parts)
        into.cast("B")[:] = byte_view(total.to(self._dtype))


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
    _mean: list[torch.Tensor] = field(default_factory=list, compare=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def open(self, table: FileTable) -> Source:
        """Return where to read it."""
        return _RepeatedRow(self, table)

    def value(self, table: FileTable) -> torch.Tensor:
        """Return μ, flat, in the table's type."""
        with self._lock:
            if not self._mean:
                self._mean.append(self._computed(table))
            return self._mean[0]

    def _computed(self, table: FileTable) -> torch.Tensor:
        rows, width = self.shape[0], math.prod(self.shape[1:])
        source, step = self.table(table), max(1, _BLOCK // max(1, width))
        total = torch.zeros(width, dtype=torch.float64)
        for first in range(0, rows, step):
            values = torch.empty(min(step, rows - first), width, dtype=torch_type(self.dtype))
            source.read(first * width, values.numel(), byte_view(values))
            total += values.double().sum(0)
        return (total / max(1, rows)).to(torch_type(self.dtype))


class _RepeatedRow:
    def __init__(self, rows: MeanOfRows, table: FileTable) -> None:
        self._rows, self._table = rows, table

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`, of rows that are all alike."""
        mean = self._rows.value(self._table)
        places = torch.arange(start, start + count) % mean.numel()
        into.cast("B")[:] = byte_view(mean[places])


def torch_type(dtype: str) -> torch.dtype:
    """Return the torch type of a table's values, which are floats."""
    found = DTYPES[dtype].torch
    assert found is not None
    return found
