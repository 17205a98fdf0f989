"""What an adapter does to one tensor, by ranges of its elements."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeAlias

from submerge.algebra import lengths
from submerge.deferred import torch
from submerge.engine.plan import TensorPlan
from submerge.store import (
    Adapter,
    Checkpoint,
    FileTable,
    LowRankPart,
    Once,
    RowMap,
    Rows,
    TensorEntry,
    Transformed,
)

__all__ = ["AdapterEdit", "AddedProduct", "AddedUpdate", "adapter_edit", "adapter_edits"]

BLOCK = 1 << 20
"""Elements that are read at a time where norms need all of a tensor."""

Read: TypeAlias = Callable[[int, int], "torch.Tensor"]
"""Returns elements [start, stop) of the tensor that the adapter was trained on."""


class AdapterEdit(ABC):
    """What an adapter does to one tensor; what it needs is read at its first use, by whichever worker."""

    @abstractmethod
    def apply_(self, start: int, values: torch.Tensor, read: Read) -> None:
        """Turn the base's values [n] from element `start` on into the adapted ones, in place."""


class AddedUpdate(AdapterEdit):
    """Adds an update that does not depend on the base's values."""

    @abstractmethod
    def update(self, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of the flattened update."""

    def apply_(self, start: int, values: torch.Tensor, read: Read) -> None:
        values.add_(self.update(start, start + values.numel()).to(values.device))


class _FactorPair:
    """The factors of a low-rank part, [.., m, r] and [.., r, n], read once."""

    def __init__(self, adapter: Adapter, name: str, table: FileTable, *, double: bool) -> None:
        self._adapter, self._name, self._table, self._double = adapter, name, table, double
        self._pair = Once[tuple[torch.Tensor, torch.Tensor]]()  # workers come to one tensor at once

    @property
    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pair.of(lambda: self._adapter.factors(self._name, self._table, double=self._double))

    @cached_property
    def magnitude(self) -> torch.Tensor | None:
        return self._adapter.magnitude(self._name, self._table)

    @property
    def rank(self) -> int:
        return self.pair[1].shape[-2]

    @property
    def width(self) -> int:
        """Elements in a row of the update."""
        return self.pair[1].shape[-1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows [start, stop) of the update, experts one below the other."""
        left, right = self.pair
        if left.ndim == 2:
            return left[start:stop] @ right
        m = left.shape[1]
        blocks = []
        for e in range(start // m, -(-stop // m)):
            blocks.append(left[e, max(0, start - e * m) : stop - e * m] @ right[e])
        return torch.cat(blocks)


def _touched_rows(start: int, stop: int, width: int) -> tuple[int, int]:
    """Return the rows that elements [start, stop) touch."""
    return start // width, -(-stop // width)


class AddedProduct(AddedUpdate):
    """Adds the product of two factors."""

    def __init__(self, factors: _FactorPair) -> None:
        self.factors = factors

    @property
    def is_matrix(self) -> bool:
        """Whether it is one product, and not one for each of packed experts."""
        return self.factors.pair[0].ndim == 2

    def update(self, start: int, stop: int) -> torch.Tensor:
        width = self.factors.width
        top, bottom = _touched_rows(start, stop, width)
        flat = self.factors.rows(top, bottom).view(-1)
        return flat[start - top * width : stop - top * width]


class AddedVector(AddedUpdate):
    """Adds an update that is stored as it is, element by element."""

    def __init__(self, adapter: Adapter, name: str, table: FileTable, *, double: bool) -> None:
        self._adapter, self._name, self._table, self._double = adapter, name, table, double

    @cached_property
    def values(self) -> torch.Tensor:
        return self._adapter.tensor(self._name, self._table, double=self._double).reshape(-1)

    def update(self, start: int, stop: int) -> torch.Tensor:
        return self.values[start:stop]


class ChangedRows(AdapterEdit):
    """Gives rows of the base new values, each from all values of the row."""

    @abstractmethod
    def new_rows(self, rows: torch.Tensor, top: int, read: Read) -> torch.Tensor:
        """Return the new values of rows [k, n], the first of which is row `top`."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Elements in a row."""

    def apply_(self, start: int, values: torch.Tensor, read: Read) -> None:
        width = self.width
        top, bottom = _touched_rows(start, start + values.numel(), width)
        # where the range ends inside a row, the base's rows are read once more
        ends_with_rows = values.numel() == (bottom - top) * width
        rows = (values if ends_with_rows else read(top * width, bottom * width)).view(-1, width)
        flat = self.new_rows(rows, top, read).reshape(-1)
        values.copy_(flat[start - top * width : start - top * width + values.numel()])


class Dora(ChangedRows):
    """Turns W into m ∘ (W + B A) / ‖W + B A‖, norms over the inputs of each output (arXiv 2402.09353)."""

    def __init__(self, factors: _FactorPair) -> None:
        self.factors = factors

    @property
    def width(self) -> int:
        return self.factors.width

    def new_rows(self, rows: torch.Tensor, top: int, read: Read) -> torch.Tensor:
        rows = rows + self.factors.rows(top, top + len(rows)).to(rows.device)
        return rows.mul_(self._scale(top, rows, read))

    def _scale(self, top: int, rows: torch.Tensor, read: Read) -> torch.Tensor:
        """Return what rows of W + B A, the first of which is row `top`, are multiplied by."""
        own: torch.Tensor = self._magnitude[top : top + len(rows)].to(rows)
        return own.div(lengths(rows, 1)).unsqueeze(1)

    @property
    def _magnitude(self) -> torch.Tensor:
        magnitude = self.factors.magnitude
        assert magnitude is not None  # it is what makes the part one of DoRA
        return magnitude


class TransposedDora(Dora):
    """DoRA with the norms of columns: of a weight that is stored as [in, out], or of one's inputs."""

    def __init__(self, factors: _FactorPair) -> None:
        super().__init__(factors)
        self._columns = Once[torch.Tensor]()

    def _scale(self, top: int, rows: torch.Tensor, read: Read) -> torch.Tensor:
        # a norm of a column needs all rows: the first range pays one more pass over the weight for all others
        return self._columns.of(lambda: self._magnitude.double() / self._squares(read).sqrt()).to(rows)

    def _squares(self, read: Read) -> torch.Tensor:
        """Return the squared norm of each column of W + B A, read a block of rows at a time."""
        width, height = self.factors.width, self.factors.pair[0].shape[0]
        squares = torch.zeros(width, dtype=torch.float64)
        step = max(1, BLOCK // width)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            rows = read(top * width, bottom * width).view(-1, width) + self.factors.rows(top, bottom)
            squares += rows.double().square_().sum(0)
        return squares


class MultipliedRows(ChangedRows):
    """Multiplies rows of the base by what an adapter has for them: (IA)³, OFT and their kin."""

    def __init__(self, adapter: Adapter, name: str, table: FileTable, width: int) -> None:
        self._adapter, self._name, self._table, self._width = adapter, name, table, width
        self._row_map = Once[RowMap]()

    @property
    def width(self) -> int:
        return self._width

    def new_rows(self, rows: torch.Tensor, top: int, read: Read) -> torch.Tensor:
        row_map = self._row_map.of(lambda: self._adapter.row_map(self._name, self._table))
        width = self.width
        return row_map(rows, top, lambda first, last: read(first * width, last * width).view(-1, width))


class ReplacedRows(AdapterEdit):
    """Replaces some rows by values that were trained: new tokens."""

    def __init__(self, adapter: Adapter, name: str, table: FileTable, indices: tuple[int, ...]) -> None:
        self._adapter, self._name, self._table = adapter, name, table
        self.indices = indices

    @cached_property
    def rows(self) -> torch.Tensor:
        return self._adapter.tensor(self._name, self._table)

    def apply_(self, start: int, values: torch.Tensor, read: Read) -> None:
        width, stop = self.rows.shape[1], start + values.numel()
        for row, index in zip(self.rows, self.indices, strict=True):
            low, high = max(start, index * width), min(stop, (index + 1) * width)
            if low < high:
                values[low - start : high - start] = row[low - index * width : high - index * width]


def adapter_edit(adapter: Adapter, name: str, entry: TensorEntry, table: FileTable) -> AdapterEdit:
    """Return what the adapter does to the tensor called `name`, whose dtype and shape are those of an entry.

    Nothing is read yet.
    """
    part, double = adapter.parts[name], entry.dtype == "F64"
    if isinstance(part, LowRankPart):
        factors = _FactorPair(adapter, name, table, double=double)
        if part.magnitude is None:
            return AddedProduct(factors)
        return TransposedDora(factors) if part.scales_columns else Dora(factors)
    if isinstance(part, Transformed):
        return MultipliedRows(adapter, name, table, math.prod(entry.shape[1:]))
    if isinstance(part, Rows):
        return ReplacedRows(adapter, name, table, part.indices)
    return AddedVector(adapter, name, table, double=double)


def adapter_edits(
    models: Sequence[Checkpoint], tensor: TensorPlan, table: FileTable
) -> list[AdapterEdit | None]:
    """Return, for each member of a tensor's fold, what the model's adapter does to it."""
    edits: list[AdapterEdit | None] = []
    for member in tensor.members:
        adapter = models[member.model].adapter
        if adapter is None or not member.patch:
            edits.append(None)
        else:
            edits.append(adapter_edit(adapter, tensor.name, member.entry, table))
    return edits
