"""Tables with what an adapter trained of them: some rows, factors of an update, or DoRA's factors and norms.

PEFT saves embeddings that an adapter changes whole beside these, and loads them in the place of the base's.
They differ from those where the vocabulary was resized, or reserved tokens were given values before the
training. A table whose rows are to be moved has no place for an update beside it, either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from submerge.algebra import lengths
from submerge.deferred import torch
from submerge.names import View
from submerge.store._checkpoint import Checkpoint
from submerge.store._computed_rows import ComputedRows, GatheredRows, RowSource, TableRows
from submerge.store.adapter import (
    Adapter,
    Add,
    ComputedUpdate,
    LowRankPart,
    Part,
    Replace,
    RowMap,
    Rows,
    SharedFactors,
    StackedRows,
    Transformed,
    saved_table,
)
from submerge.store.format import (
    DTYPES,
    ComputedSource,
    FileTable,
    MemorySource,
    Once,
    Source,
    TensorEntry,
    byte_view,
    dtype_named,
    read_elements,
    torch_dtype,
)

__all__ = ["differ", "own_tables", "was_trained_on", "with_folded_table"]

_BLOCK = 1 << 20


def own_tables(
    base: Checkpoint, adapter: Adapter, parts: Mapping[str, Part]
) -> dict[str, tuple[TensorEntry, RowSource]]:
    """Return the tables that `parts` were trained on, and that are not the base's, with what was trained.

    Values are compared where they have been downloaded; else shapes alone tell.
    """
    tables = {}
    for name, part in parts.items():
        saved = saved_table(part)
        if saved is not None and _is_other(saved, adapter, base, name):
            of_file = _TableBefore(saved, partial(adapter.source, saved))
            tables[name] = _folded(adapter, name, part, of_file)
    return tables


def with_folded_table(model: Checkpoint, name: str) -> Checkpoint:
    """Return a model whose table `name` has what its adapter trained of it, and no update beside it.

    No value is read. Sums are float32, or float64 where the table is, and rows are of the wider type of both.
    """
    adapter = model.adapter
    assert adapter is not None
    part, own, stored = adapter.parts[name], model.tensors[name], model.stored or model
    key = f"{name} with what was trained of it"
    wide = _wider(own.dtype, part.entry.dtype) if isinstance(part, Rows) else own.dtype
    table = _TableBefore(replace(own, dtype=wide), partial(_values_of, model, name, wide))
    entry, rows = _folded(adapter, name, part, table)
    return replace(
        model,
        tensors={**model.tensors, name: entry},
        views={**model.views, name: View.of(key, entry.shape)},
        stored=replace(
            stored,
            tensors={**stored.tensors, key: replace(entry, name=key)},
            computed={**stored.computed, key: rows},
        ),
        adapter=replace(
            adapter,
            parts={own: part for own, part in adapter.parts.items() if own != name},
            replaced=adapter.replaced | {name},
            folded={**adapter.folded, name: part},
        ),
    )


def _wider(one: str, other: str) -> str:
    """Return the type that holds the values of two."""
    types = torch.promote_types(torch_dtype(one), torch_dtype(other))
    return next(code for code, dtype in DTYPES.items() if dtype.torch == types)


def _values_of(model: Checkpoint, name: str, dtype: str, files: FileTable) -> Source:
    """Return where to read a tensor of a model in a type."""
    own = TableRows(partial(model.source, name), 0, model.tensors[name].dtype)
    return own.open(files) if own.dtype == dtype else ComputedRows([own], dtype).open(files)


@dataclass(frozen=True)
class _TableBefore:
    """A table [V, d] from before the training: its type and shape, and where its values are read."""

    entry: TensorEntry
    open: Callable[[FileTable], Source]


def _folded(adapter: Adapter, name: str, part: Part, table: _TableBefore) -> tuple[TensorEntry, RowSource]:
    """Return a table with what was trained of it, as it is computed when it is read."""
    if isinstance(part, Rows):
        return _trained_table(adapter, name, part, table)
    if isinstance(part, ComputedUpdate | Transformed | StackedRows | SharedFactors):
        own = replace(adapter, parts={name: part})
        return _float_entry(name, table), _ChangedTable(own, name, part, table)
    assert not isinstance(part, Replace)  # such a table is the adapter's own, and has nothing beside it
    return _updated_table(adapter, name, part, table)


def _is_other(saved: TensorEntry, adapter: Adapter, base: Checkpoint, name: str) -> bool:
    """Return whether a table is not the base's; values that cannot be read yet are taken for the same."""
    entry = base.tensors[name]
    if saved.shape != entry.shape or base.pending or adapter.pending:
        return saved.shape != entry.shape
    with FileTable() as files:
        own = (saved.dtype, adapter.source(saved, files))
        return differ(own, (entry.dtype, base.source(name, files)), entry.numel)


def was_trained_on(adapter: Adapter, part: Part, values: torch.Tensor) -> bool:
    """Return whether a parameter's values [V, d] are those that an adapter saved beside what it trained.

    So they are where it saved none, or has not been downloaded.
    """
    saved, code = saved_table(part), dtype_named(str(values.dtype).removeprefix("torch."))
    if saved is None or adapter.pending or values.is_meta or code is None:
        return True
    with FileTable() as files:
        own = (code, MemorySource(values.detach().cpu()))
        return not differ((saved.dtype, adapter.source(saved, files)), own, saved.numel)


def differ(one: tuple[str, Source], other: tuple[str, Source], count: int) -> bool:
    """Return whether `count` values of two types differ by more than by the narrower of both."""
    narrow = min((torch_dtype(code) for code, _ in (one, other)), key=lambda dtype: dtype.itemsize)
    for start in range(0, count, _BLOCK):
        length = min(_BLOCK, count - start)
        blocks = [read_elements(source, code, start, length) for code, source in (one, other)]
        if not torch.equal(*(block.to(narrow) for block in blocks)):
            return True
    return False


def _trained_table(
    adapter: Adapter, name: str, part: Rows, before: _TableBefore
) -> tuple[TensorEntry, RowSource]:
    """Return the table `name` with the rows that were trained in their places, as it is read from the file.

    The rows may be of another type, for PEFT trains rows of a bfloat16 table in float32; the result is of the
    type of the table `before`.
    """
    table = before.entry
    sources: list[RowSource] = [
        ComputedRows([TableRows(opened, 0, dtype)], table.dtype)
        for opened, dtype in (
            (before.open, table.dtype),
            (partial(adapter.source, part.entry), part.entry.dtype),
        )
    ]
    runs = _runs(part.indices, table.shape[0])
    rows = GatheredRows(
        sources=sources,
        starts=[start for start, _, _ in runs],
        which=[source for _, source, _ in runs],
        first=[first for _, _, first in runs],
        width=math.prod(table.shape[1:]),
        itemsize=table.itemsize,
    )
    return TensorEntry.in_memory(name, table.dtype, table.shape), rows


def _updated_table(
    adapter: Adapter, name: str, part: LowRankPart | Add, before: _TableBefore
) -> tuple[TensorEntry, RowSource]:
    """Return the table `name` with an update, as it is computed when it is read.

    The table `before` is W [V, d], and `part` has the factors of an update s · B A or of its transpose, or an
    update as it stands. The sum is float32, or float64 where the table is: nothing is rounded before the
    merge.
    """
    entry = _float_entry(name, before)
    if isinstance(part, Add):
        return entry, _SummedTable(adapter, part, before, entry.dtype)
    return entry, _UpdatedTable(adapter, part, before, entry.dtype)


def _float_entry(name: str, before: _TableBefore) -> TensorEntry:
    """Return the entry of a table that is computed: float32, or float64 where the table before it is."""
    dtype = "F64" if before.entry.dtype == "F64" else "F32"
    return TensorEntry.in_memory(name, dtype, before.entry.shape)


@dataclass(frozen=True)
class _ChangedTable:
    """Opens a table whose change is known as a whole alone: that of LoHa, (IA)³, OFT and others.

    What the adapter has of it is read once, by whichever worker comes first.
    """

    adapter: Adapter
    name: str
    part: Part
    before: _TableBefore
    _change: Once[RowMap] = field(default_factory=Once, compare=False, repr=False)

    def open(self, table: FileTable) -> Source:
        """Return where to read the rows."""
        return ComputedSource(partial(self._changed, table))

    def _changed(self, files: FileTable, start: int, count: int) -> torch.Tensor:
        """Return elements `start … start + count − 1`."""
        width, code = math.prod(self.before.entry.shape[1:]), self.before.entry.dtype
        dtype = torch.float64 if code == "F64" else torch.float32

        def read_rows(first: int, last: int) -> torch.Tensor:
            values = read_elements(self.before.open(files), code, first * width, (last - first) * width)
            return values.to(dtype).view(-1, width)

        first, last = start // width, -(-(start + count) // width)
        row_map = self._change.of(lambda: self._row_map(files))
        values = row_map(read_rows(first, last), first, read_rows)
        return values.reshape(-1)[start - first * width :][:count]

    def _row_map(self, files: FileTable) -> RowMap:
        """Return what gives new rows, of the table's."""
        if isinstance(self.part, Transformed):
            return self.adapter.row_map(self.name, files)
        double = self.before.entry.dtype == "F64"
        if isinstance(self.part, LowRankPart):
            left, right = self.adapter.factors(self.name, files, double=double)
            return lambda rows, top, others: rows + left[top : top + len(rows)] @ right
        update = self.adapter.tensor(self.name, files, double=double)
        return lambda rows, top, others: rows + update[top : top + len(rows)].view_as(rows)


@dataclass(frozen=True)
class _SummedTable:
    """Opens a table or the bias of a head with an update of the same shape, in the type `dtype`."""

    adapter: Adapter
    part: Add
    before: _TableBefore
    dtype: str

    def open(self, table: FileTable) -> Source:
        """Return where to read them."""
        return ComputedSource(partial(self._sum, table))

    def _sum(self, files: FileTable, start: int, count: int) -> torch.Tensor:
        before, entry, dtype = self.before, self.part.entry, torch_dtype(self.dtype)
        values = read_elements(before.open(files), before.entry.dtype, start, count).to(dtype)
        update = read_elements(self.adapter.source(entry, files), entry.dtype, start, count)
        return values.add_(update.to(dtype), alpha=self.part.scale)


@dataclass(frozen=True)
class _UpdatedTable:
    """Opens the rows of a table with an update by factors, in the type `dtype`.

    With DoRA's magnitudes m the rows are those of m · (W + s · B A) / ‖W + s · B A‖: norms of the rows of an
    output head, and of the columns of an embedding, for which the table is read once more.
    """

    adapter: Adapter
    part: LowRankPart
    before: _TableBefore
    dtype: str
    _norms: Once[torch.Tensor] = field(default_factory=Once, compare=False, repr=False)

    def open(self, table: FileTable) -> Source:
        """Return where to read them."""
        return _UpdatedSource(self, table)

    def column_norms(self, source: _UpdatedSource) -> torch.Tensor:
        """Return the norms of the columns [d] of W + s · B A, computed once, by whichever worker."""
        return self._norms.of(lambda: self._computed_norms(source))

    def _computed_norms(self, source: _UpdatedSource) -> torch.Tensor:
        height, width = self.before.entry.shape
        squares = torch.zeros(width, dtype=torch.float64)
        step = max(1, _BLOCK // width)
        for first in range(0, height, step):
            squares += source.sums(first, min(height, first + step)).double().square_().sum(0)
        return squares.sqrt_()


class _UpdatedSource:
    """Reads rows of W and of U as they are asked for, and V once: the update of W is s · U V, U [V, r].

    Singular values between the factors (AdaLoRA) are in V.
    """

    def __init__(self, of: _UpdatedTable, files: FileTable) -> None:
        self._of, self._files = of, files
        self._dtype = torch_dtype(of.dtype)
        self._width = of.before.entry.shape[1]

    def read(self, start: int, count: int, into: memoryview) -> None:
        """Fill `into` with elements `start … start + count − 1`."""
        first, last = start // self._width, -(-(start + count) // self._width)
        values = self.sums(first, last)
        if self._of.part.magnitude is not None:
            values.mul_(self._scale(first, values))
        into.cast("B")[:] = byte_view(values.view(-1)[start - first * self._width :][:count])

    def sums(self, first: int, last: int) -> torch.Tensor:
        """Return rows [first, last) of W + s · U V."""
        before, update = self._of.before, (self._left(first, last) @ self._right).mul_(self._scaling)
        count = (last - first) * self._width
        values = self._read(before.open(self._files), before.entry.dtype, first * self._width, count)
        return update.add_(values.view_as(update))

    def _scale(self, first: int, sums: torch.Tensor) -> torch.Tensor:
        """Return what the sums are multiplied by, the first of which is row `first`: m over their norms."""
        magnitude = self._magnitude
        if self._of.part.transposed:
            return (magnitude.double() / self._of.column_norms(self)).to(sums)
        return magnitude[first : first + len(sums)].div(lengths(sums, 1)).unsqueeze(1)

    @cached_property
    def _magnitude(self) -> torch.Tensor:
        entry = self._of.part.magnitude
        assert entry is not None  # it is what makes the part one of DoRA
        return self._values(entry, 0, entry.numel)

    @cached_property
    def _scaling(self) -> float:
        part = self._of.part
        return part.scale if part.alpha is None else float(self._values(part.alpha, 0, 1)) / part.rank

    def _left(self, first: int, last: int) -> torch.Tensor:
        """Return rows [first, last) of U, which is Aᵀ where the update is transposed, or else B."""
        part, rank = self._of.part, self._of.part.rank
        entry = part.right_entry if part.transposed else part.left_entry
        if part.transposed == part.swapped:  # stored as [V, r]
            return self._values(entry, first * rank, (last - first) * rank).view(-1, rank)
        starts = (row * entry.shape[1] + first for row in range(rank))
        return torch.stack([self._values(entry, at, last - first) for at in starts], dim=1)

    @cached_property
    def _right(self) -> torch.Tensor:
        """V [r, d]."""
        part = self._of.part
        entry = part.left_entry if part.transposed else part.right_entry
        values = self._values(entry, 0, entry.numel).view(entry.shape)
        values = values.T if part.transposed != part.swapped else values
        if part.between is None:
            return values
        return values * self._values(part.between, 0, part.between.numel).unsqueeze(1)

    def _values(self, entry: TensorEntry, start: int, count: int) -> torch.Tensor:
        return self._read(self._of.adapter.source(entry, self._files), entry.dtype, start, count)

    def _read(self, source: Source, dtype: str, start: int, count: int) -> torch.Tensor:
        return read_elements(source, dtype, start, count).to(self._dtype)


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
