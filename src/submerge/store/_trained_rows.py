"""Tables that an adapter saves whole, for another vocabulary, and of which it trained some rows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from submerge.store._computed_rows import ComputedRows, GatheredRows, RowSource, TableRows
from submerge.store.adapter import Adapter, Rows
from submerge.store.format import DTYPES, TensorEntry

__all__ = ["trained_table"]


def trained_table(adapter: Adapter, name: str, part: Rows) -> tuple[TensorEntry, RowSource]:
    """Return the table `name` with the rows that were trained in their places, as it is read from the file.

    `part` holds both: the table from before the training, and the rows. They may be of two types, for PEFT
    trains rows of a bfloat16 table in float32; the result is of the table's.
    """
    table = part.table
    assert table is not None  # what was not saved is the base's
    size, itemsize = math.prod(table.shape), DTYPES[table.dtype].itemsize
    sources: list[RowSource] = [
        ComputedRows([TableRows(partial(adapter.source, entry), 0, entry.dtype)], table.dtype)
        for entry in (table, part.entry)
    ]
    runs = _runs(part.indices, table.shape[0])
    rows = GatheredRows(
        sources=sources,
        starts=[start for start, _, _ in runs],
        which=[source for _, source, _ in runs],
        first=[first for _, _, first in runs],
        width=math.prod(table.shape[1:]),
        itemsize=itemsize,
    )
    return TensorEntry(name, table.dtype, table.shape, None, 0, size * itemsize), rows


def _runs(indices: Sequence[int], rows: int) -> list[tuple[int, int, int]]:
    """Return runs: the row where each begins, whether it is the table's (0) or trained (1), its row there.

    Examples:
        >>> _runs([3, 1], 4)
        [(0, 0, 0), (1, 1, 1), (2, 0, 2), (3, 1, 0)]
    """
    runs, at = [], 0
    for row, number in sorted((row, number) for number, row in enumerate(indices)):
        runs += [(at, 0, at)] if at < row else []
        runs += [(row, 1, number)]
        at = row + 1
    return [*runs, (at, 0, at)] if at < rows else runs
