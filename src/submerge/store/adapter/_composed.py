"""Updates that are products of two matrices, each of which may be factored: LoHa and LoKr."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from submerge.deferred import torch
from submerge.store.adapter._computed import ComputedUpdate, Read
from submerge.store.format import TensorEntry

__all__ = ["Composed", "Operand", "operand"]


@dataclass(frozen=True)
class Operand:
    """A matrix [m, n]: whole, or first · second, or with a core [r, r, kernel] between them.

    first is [m, r] and second [r, n]. With a core first is [r, m], second [r, i], and n = i times the kernel.
    Of a convolution n counts the inputs and the kernel.
    """

    whole: TensorEntry | None = None
    first: TensorEntry | None = None
    second: TensorEntry | None = None
    core: TensorEntry | None = None

    @property
    def rank(self) -> int | None:
        """The rank of the factors, or None where the matrix is stored whole."""
        return None if self.second is None else self.second.shape[0]

    @property
    def factored_rank(self) -> int:
        """The rank of `factors`."""
        if self.core is not None:
            return self.core.shape[0]
        return self.rank or min(self.shape)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel of a convolution where the file tells it; else empty, as of a linear map."""
        entry = self.core or self.whole
        return () if entry is None else entry.shape[2:]

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix' shape."""
        if self.whole is not None:
            return self.whole.shape[0], math.prod(self.whole.shape[1:])
        assert self.first is not None
        assert self.second is not None
        if self.core is None:
            return self.first.shape[0], self.second.shape[1]
        return self.first.shape[1], self.second.shape[1] * math.prod(self.core.shape[2:])

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """Its tensors."""
        entries = (self.whole, self.first, self.second, self.core)
        return tuple(entry for entry in entries if entry is not None)

    def values(self, read: Read) -> torch.Tensor:
        """Return the matrix [m, n]."""
        if self.whole is not None:
            return read(self.whole).flatten(1)
        assert self.first is not None
        assert self.second is not None
        first, second = read(self.first), read(self.second)
        if self.core is None:
            return first @ second
        return torch.einsum("ab...,am,bi->mi...", read(self.core), first, second).flatten(1)

    def factors(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """Return left [m, r] and right [r, n], whose product is the matrix."""
        if self.whole is not None:
            return _as_factors(read(self.whole).flatten(1))
        assert self.first is not None
        assert self.second is not None
        if self.core is None:
            return read(self.first), read(self.second)
        right = torch.einsum("ab...,bi->ai...", read(self.core), read(self.second))
        return read(self.first).mT, right.flatten(1)


def _as_factors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return left [m, r] and right [r, n], r the smaller side, one of them I, whose product is the matrix."""
    m, n = matrix.shape
    one = torch.eye(min(m, n), dtype=matrix.dtype)
    return (matrix, one) if n < m else (one, matrix)


@dataclass(frozen=True)
class Composed(ComputedUpdate):
    """The update scale · (first ∘ second), entry by entry (LoHa), or scale · (first ⊗ second) (LoKr).

    With an `alpha` of LyCORIS' form it is alpha / rank besides, but of matrices that are both stored whole.
    `by_axes` says that a whole second matrix [p, i, k] is multiplied as PEFT does it: by the first one as
    [1, m, n], and the values in that order are those of the parameter.
    """

    product: Literal["LoHa", "LoKr"]
    first: Operand
    second: Operand
    alpha: TensorEntry | None = None
    scale: float = 1.0
    by_axes: bool = False

    @property
    def kind(self) -> str:
        return self.product

    @property
    def rank(self) -> int | None:
        """The rank that alpha is divided by; None where neither matrix is factored."""
        ranks = (self.second.rank, self.first.rank) if self.product == "LoKr" else (self.first.rank,)
        return next((rank for rank in ranks if rank is not None), None)

    @property
    def matrix(self) -> tuple[int, int]:
        """The parameter's shape, with all dimensions after the first as one."""
        (m, n), (p, q) = self.first.shape, self.second.shape
        return (m * p, n * q) if self.product == "LoKr" else (m, n)

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        """All of its tensors: the update is zero where one of them is."""
        return self.first.entries + self.second.entries

    @property
    def settings(self) -> dict[str, float]:
        """Its scale, by the name of the first tensor."""
        return {self.first.entries[0].name: self.scale}

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel of a convolution where the file tells it; else empty, as of a linear map."""
        return self.first.kernel or self.second.kernel

    @property
    def factored_rank(self) -> int:
        """The rank of `factors`."""
        if self.by_axes:
            return min(self.matrix)
        return min(self.first.factored_rank * self.second.factored_rank, *self.matrix)

    def factors(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """Return left [m, r], with the scale, and right [r, n], whose product is the update.

        (L₁ R₁) ⊗ (L₂ R₂) = (L₁ ⊗ L₂)(R₁ ⊗ R₂), and likewise entry by entry, with all products of a column of
        L₁ and one of L₂, and of a row of R₁ and one of R₂.
        """
        if self.factored_rank == min(self.matrix):
            return _as_factors(self.values(read))
        (one, right_one), (other, right_other) = self.first.factors(read), self.second.factors(read)
        if self.product == "LoKr":
            left, right = torch.kron(one, other), torch.kron(right_one, right_other)
        else:
            left = torch.einsum("mi,mj->mij", one, other).flatten(1)
            right = torch.einsum("in,jn->ijn", right_one, right_other).flatten(0, 1)
        return left * self._factor(read), right

    def values(self, read: Read) -> torch.Tensor:
        """Return the update [m, n] with its scale."""
        first, second = self.first.values(read), self.second.values(read)
        if self.product == "LoHa":
            return first * second * self._factor(read)
        if self.by_axes and self.second.whole is not None:
            second = second.view(self.second.whole.shape)
        return torch.kron(first.contiguous(), second.contiguous()).view(self.matrix) * self._factor(read)

    def _factor(self, read: Read) -> float:
        if self.alpha is None or self.rank is None:
            return self.scale
        return self.scale * float(read(self.alpha)) / self.rank


def operand(entries: Mapping[str, TensorEntry], name: str, core: str) -> Operand | None:
    """Return the matrix that a module's tensors hold under a name, or None where they do not fit."""
    whole, first, second = (entries.get(f"{name}{end}") for end in ("", "_a", "_b"))
    if whole is not None:
        return Operand(whole) if first is None and second is None and len(whole.shape) > 1 else None
    if first is None or second is None or len(first.shape) != 2 or len(second.shape) != 2:
        return None
    middle = entries.get(core)
    if middle is None:
        return Operand(None, first, second) if first.shape[1] == second.shape[0] else None
    fits = len(middle.shape) > 2 and middle.shape[:2] == (first.shape[0], second.shape[0])
    return Operand(None, first, second, middle) if fits else None
