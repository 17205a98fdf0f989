"""New values that are computed of the base's entry by entry: HiRA and GLoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from submerge.deferred import torch
from submerge.store.adapter._computed import Read
from submerge.store.adapter._transformed import RowMap, RowReader, Transformed
from submerge.store.format import TensorEntry

__all__ = ["EntryFactor", "EntryMap", "Hadamard"]


@dataclass(frozen=True)
class Hadamard(Transformed):
    """HiRA: W ∘ (1 + B A), entry by entry.

    `entry` is B [outputs, r], `right` A [r, inputs], of a convolution with its kernel behind it. `transposed`
    says that the parameter is stored as [inputs, outputs]: an embedding, Conv1D.
    """

    right: TensorEntry
    transposed: bool = False

    @property
    def kind(self) -> str:
        return "HiRA"

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        return (self.entry, self.right)

    def fitted(self, shape: tuple[int, ...], *, either_layout: bool) -> Transformed | None:
        layouts = (self.transposed, not self.transposed) if either_layout else (self.transposed,)
        for transposed in layouts if shape else ():
            candidate = replace(self, transposed=transposed)
            if candidate.takes(shape[0], math.prod(shape[1:])) and (not transposed or len(shape) == 2):
                return candidate
        return None

    def takes(self, m: int, n: int) -> bool:
        size = (self.entry.shape[0], math.prod(self.right.shape[1:]))
        return size == ((n, m) if self.transposed else (m, n))

    def row_map(self, read: Read) -> RowMap:
        b, a = read(self.entry).flatten(1), read(self.right).flatten(1)
        left, right = (a.mT, b.mT) if self.transposed else (b, a)

        def new_rows(rows: torch.Tensor, top: int, others: RowReader) -> torch.Tensor:
            own = left[top : top + len(rows)].to(rows)
            return rows * (own @ right.to(rows) + 1)

        return new_rows


@dataclass(frozen=True)
class EntryFactor:
    """A matrix of the size of a parameter: first · second, or a column or number of which all are made."""

    first: TensorEntry
    second: TensorEntry | None = None

    def fits(self, m: int, n: int) -> bool:
        """Return whether it can be made a matrix [m, n]."""
        if self.second is not None:
            return (self.first.shape[0], self.second.shape[1]) == (m, n)
        return self.first.numel in (1, m)

    def read(self, read: Read) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return its tensors, a column or a number as [.., 1]."""
        if self.second is not None:
            return read(self.first), read(self.second)
        return read(self.first).reshape(-1, 1), None


@dataclass(frozen=True)
class EntryMap(Transformed):
    """GLoRA: W + W ∘ A + B, and likewise of a bias (2306.07967); None stands for zeros."""

    factor: EntryFactor | None
    addend: EntryFactor | None

    @property
    def kind(self) -> str:
        return "GLoRA"

    def takes(self, m: int, n: int) -> bool:
        return all(part is None or part.fits(m, n) for part in (self.factor, self.addend))

    def row_map(self, read: Read) -> RowMap:
        factor, addend = (None if part is None else part.read(read) for part in (self.factor, self.addend))

        def new_rows(rows: torch.Tensor, top: int, others: RowReader) -> torch.Tensor:
            new = rows if factor is None else rows + rows * _rows(factor, top, rows)
            return new if addend is None else new + _rows(addend, top, rows)

        return new_rows


def _rows(factors: tuple[torch.Tensor, torch.Tensor | None], top: int, rows: torch.Tensor) -> torch.Tensor:
    """Return those rows of an `EntryFactor` that stand beside rows of a parameter."""
    first, second = factors
    own = first[top : top + len(rows)] if len(first) > 1 else first
    return own.to(rows) if second is None else own.to(rows) @ second.to(rows)
