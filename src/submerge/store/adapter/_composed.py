"""Updates of LyCORIS that are products of two matrices, each of which may be factored: LoHa and LoKr."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from submerge.deferred import torch
from submerge.store.format import TensorEntry

__all__ = ["Composed", "Operand", "composed_update", "operand"]

Read: TypeAlias = Callable[[TensorEntry], "torch.Tensor"]


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
    def shape(self) -> tuple[int, int]:
        """The matrix' shape."""
        if self.whole is not None:
            return self.whole.shape[0], math.prod(self.whole.shape[1:])
        assert self.first is not None
        assert self.second is not None
        if self.core is None:
            return self.first.shape[0], self.second.shape[1]
        return self.first.shape[1], self.second.shape[1] * math.prod(self.core.shape[2:])

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


@dataclass(frozen=True)
class Composed:
    """The update scale · (first ∘ second), entry by entry (LoHa), or scale · (first ⊗ second) (LoKr).

    The scale is alpha / rank, and 1 without an alpha, or where both matrices are stored whole.
    """

    product: Literal["LoHa", "LoKr"]
    first: Operand
    second: Operand
    alpha: TensorEntry | None = None

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
    def shape(self) -> None:
        """Which shape the parameter has, the base alone tells."""
        return None


def composed_update(part: Composed, read: Read) -> torch.Tensor:
    """Return the update [m, n] with its scale."""
    first, second = part.first.values(read), part.second.values(read)
    update = torch.kron(first.contiguous(), second.contiguous()) if part.product == "LoKr" else first * second
    if part.alpha is None or part.rank is None:
        return update
    return update * (float(read(part.alpha)) / part.rank)


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
