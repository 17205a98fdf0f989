"""Updates of one weight matrix: dense, low-rank, or zero, behind one interface.

An update Δ has shape [m, n] (rows are outputs). Every operation takes the cheapest exact form: a
low-rank update `left @ right` with left [m, r] and right [r, n] is never made dense unless it is asked
for, sums of low-rank updates are concatenations of factors, and zero updates cost nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from submerge.deferred import torch
from submerge.deprecated import warn_renamed

__all__ = ["Dense", "LowRank", "Streamed", "Update", "Zero", "inner", "weighted_sum"]

BLOCK = 1 << 20
"""Elements that are cast to float64 at a time, so that there is never a float64 copy of the matrix."""
PANEL = 256
"""Columns of a Gram matrix that are formed at a time, from the diagonal down, which is half of them."""
SLABS = 4
"""Parts in which a streamed update is held, one at a time, for its row Gram matrix: it is read 3.5 times."""


class Update(ABC):
    """An update Δ of a weight, shape [m, n]; see `Dense`, `LowRank` and `Zero`.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, LowRank, Update, Zero
        >>> low_rank = LowRank(torch.ones(3, 1), torch.ones(1, 2))
        >>> updates: list[Update] = [Dense(torch.ones(3, 2)), low_rank, Zero((3, 2))]
        >>> [round(update.norm**2, 4) for update in updates]
        [6.0, 6.0, 0.0]
        >>> [update.rank for update in updates]
        [2, 1, 0]
    """

    shape: tuple[int, int]

    @property
    @abstractmethod
    def rank(self) -> int:
        """An upper bound of the rank that the form itself shows."""

    @abstractmethod
    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Return Δ x for x [n, k], shape [m, k], in x's dtype."""

    @abstractmethod
    def rmatmul(self, x: torch.Tensor) -> torch.Tensor:
        """Return x Δ for x [k, m], shape [k, n], in x's dtype."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows [start, stop) of Δ as a dense matrix."""

    @abstractmethod
    def scaled(self, factor: float) -> Update:
        """Return factor · Δ, in the same form."""

    @abstractmethod
    def row_gram(self) -> torch.Tensor:
        """Return Δ Δᵀ, the inner products of the rows, [m, m], in float64."""

    @abstractmethod
    def column_gram(self) -> torch.Tensor:
        """Return Δᵀ Δ, the inner products of the columns, [n, n], in float64."""

    def dense(self) -> torch.Tensor:
        """Return Δ as one matrix [m, n]."""
        return self.rows(0, self.shape[0])

    @cached_property
    def norm(self) -> float:
        """The Frobenius norm ‖Δ‖."""
        return math.sqrt(max(0.0, inner(self, self)))  # rounding may leave less than 0 where factors cancel

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """Return Δ x: the old name of `matmul`, which warns."""
        warn_renamed("Update.times(x)", "Update.matmul(x)")
        return self.matmul(x)

    def under(self, x: torch.Tensor) -> torch.Tensor:
        """Return xᵀ Δ for x [m, k]: an old name, which warns."""
        warn_renamed("Update.under(x)", "Update.rmatmul(x.T)")
        return self.rmatmul(x.T)

    def gram(self, side: str) -> torch.Tensor:
        """Return `row_gram()` for side "left", `column_gram()` for "right": an old name, which warns."""
        warn_renamed(f"Update.gram({side!r})", "row_gram()" if side == "left" else "column_gram()")
        return self.row_gram() if side == "left" else self.column_gram()


class _Rows(Update):
    """An update whose entries are at hand as blocks of rows; one block is cast and used at a time."""

    dtype: torch.dtype

    @property
    def rank(self) -> int:
        return min(self.shape)

    @property
    def step(self) -> int:
        """The rows of a block."""
        return max(1, BLOCK // max(1, self.shape[1]))

    def blocks(
        self, dtype: torch.dtype, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield runs of rows [first, last), all by default, as a slice and a matrix of `dtype`."""
        last = self.shape[0] if last is None else min(last, self.shape[0])
        for start in range(first, last, self.step):
            stop = min(start + self.step, last)
            yield slice(start, stop), self.rows(start, stop).to(dtype)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(self.shape[0], x.shape[1])
        for at, block in self.blocks(x.dtype):
            torch.mm(block, x, out=out[at])
        return out

    def rmatmul(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_zeros(x.shape[0], self.shape[1])
        for at, block in self.blocks(x.dtype):
            out.addmm_(x[:, at], block)
        return out

    def column_gram(self) -> torch.Tensor:
        n = self.shape[1]
        gram = torch.zeros(n, n, dtype=torch.float64)
        for _, block in self.blocks(torch.float64):
            for start in range(0, n, PANEL):  # what lies above the diagonal panel is its mirror image
                panel = slice(start, start + PANEL)
                gram[start:, panel].addmm_(block[:, start:].T, block[:, panel])
        return _mirrored(gram)

    def row_gram(self) -> torch.Tensor:
        m, n = self.shape
        gram = torch.zeros(m, m, dtype=torch.float64)
        # A slab begins and ends with a block. Rows that are computed (an adapter's product) are rounded
        # otherwise in a range of other bounds, and the products of two roundings of one matrix are no Gram
        # matrix: its small eigenvalues would be noise, some below zero.
        length = self.step * max(1, -(-m // (SLABS * self.step)))
        for start in range(0, m, length):
            slab = torch.empty(min(length, m - start), n, dtype=torch.float64)
            for at, block in self.blocks(torch.float64, start, start + length):
                slab[at.start - start : at.stop - start] = block
            for at, block in self.blocks(torch.float64, start):
                gram[at, start : start + length] = block @ slab.T
        return _mirrored(gram)


@dataclass(frozen=True, eq=False)
class Dense(_Rows):
    """An update as one matrix [m, n] of float32 or float64.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense
        >>> Dense(torch.tensor([[1.0, 2.0]])).row_gram()
        tensor([[5.]], dtype=torch.float64)
    """

    matrix: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return (self.matrix.shape[0], self.matrix.shape[1])

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.matrix.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.matrix[start:stop]

    def scaled(self, factor: float) -> Dense:
        return Dense(self.matrix * factor)

    def row_gram(self) -> torch.Tensor:
        return Dense(self.matrix.T).column_gram()  # a transposed view costs nothing, and reading no rows anew


@dataclass(frozen=True, eq=False)
class Streamed(_Rows):
    """A dense update [m, n] that is read (or computed) anew, a block of rows at a time.

    `read(start, stop)` returns rows [start, stop) in `dtype`. Nothing is held between calls: a weight
    that does not fit the memory has its Gram matrices and projections formed in passes over its rows.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Streamed
        >>> weight = torch.arange(6.0).view(3, 2)
        >>> Streamed((3, 2), lambda start, stop: weight[start:stop]).matmul(torch.ones(2, 1))
        tensor([[1.],
                [5.],
                [9.]])
    """

    size: tuple[int, int]
    read: Callable[[int, int], torch.Tensor]
    dtype: torch.dtype = field(default_factory=lambda: torch.float32)

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.size

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.read(start, min(stop, self.size[0]))

    def scaled(self, factor: float) -> Streamed:
        return Streamed(self.size, lambda start, stop: self.read(start, stop) * factor, self.dtype)


@dataclass(frozen=True, eq=False)
class LowRank(Update):
    """An update left @ right, with left [m, r] and right [r, n]; any scale is baked into the factors.

    Raises:
        ValueError: the factors do not meet.

    Examples:
        >>> import torch
        >>> from submerge.algebra import LowRank
        >>> LowRank(torch.ones(3, 1), torch.tensor([[1.0, 2.0]])).scaled(0.5).rows(0, 1)
        tensor([[0.5000, 1.0000]])
    """

    left: torch.Tensor
    right: torch.Tensor

    def __post_init__(self) -> None:
        if self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"factors {list(self.left.shape)} and {list(self.right.shape)} do not meet")

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return (self.left.shape[0], self.right.shape[1])

    @property
    def rank(self) -> int:
        return min(self.left.shape[1], *self.shape)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        return self.left.to(x.dtype) @ (self.right.to(x.dtype) @ x)

    def rmatmul(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.left.to(x.dtype)) @ self.right.to(x.dtype)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.left[start:stop] @ self.right

    def scaled(self, factor: float) -> LowRank:
        return LowRank(self.left * factor, self.right)

    def row_gram(self) -> torch.Tensor:
        return _low_rank_gram(self.left.double(), self.right.T.double())

    def column_gram(self) -> torch.Tensor:
        return _low_rank_gram(self.right.T.double(), self.left.double())


@dataclass(frozen=True, eq=False)
class Zero(Update):
    """The zero update of a shape: a module that a fine-tune did not touch.

    Examples:
        >>> from submerge.algebra import Zero
        >>> Zero((3, 2)).dense()
        tensor([[0., 0.],
                [0., 0.],
                [0., 0.]])
    """

    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.size

    @property
    def rank(self) -> int:
        return 0

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(self.size[0], x.shape[1])

    def rmatmul(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(x.shape[0], self.size[1])

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return torch.zeros(stop - start, self.size[1])

    def scaled(self, factor: float) -> Zero:
        return self

    def row_gram(self) -> torch.Tensor:
        return torch.zeros(self.size[0], self.size[0], dtype=torch.float64)

    def column_gram(self) -> torch.Tensor:
        return torch.zeros(self.size[1], self.size[1], dtype=torch.float64)


def _mirrored(lower: torch.Tensor) -> torch.Tensor:
    """Return the symmetric matrix with this lower triangle, in its place."""
    return lower.tril_().add_(lower.tril(-1).T)


def _low_rank_gram(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return X Xᵀ for X = a bᵀ."""
    return a @ (b.T @ b) @ a.T


def inner(a: Update, b: Update) -> float:
    """Return ⟨a, b⟩ = Σ a_ij b_ij: from the factors where one is low-rank, in float64.

    ⟨L_a R_a, L_b R_b⟩ = Σ (L_aᵀ L_b) ∘ (R_a R_bᵀ), which costs O((m + n) r²).

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense, LowRank, inner
        >>> inner(Dense(torch.ones(3, 2)), LowRank(torch.ones(3, 1), torch.ones(1, 2)))
        6.0
    """
    if isinstance(a, Zero) or isinstance(b, Zero):
        return 0.0
    if isinstance(a, LowRank):
        a, b = b, a
    if isinstance(b, LowRank):
        return float((a.rmatmul(b.left.double().T) * b.right.double()).sum())
    assert isinstance(a, _Rows)
    return math.fsum(
        torch.sum(block * b.rows(at.start, at.stop).double()).item() for at, block in a.blocks(torch.float64)
    )


def weighted_sum(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """Return Σ w_t Δ_t: factors side by side where every update is low-rank or zero, else by rows.

    Examples:
        >>> import torch
        >>> from submerge.algebra import LowRank, Zero, weighted_sum
        >>> one = LowRank(torch.ones(3, 1), torch.ones(1, 2))
        >>> merged = weighted_sum([one, one, Zero((3, 2))], [1.0, 0.5, 1.0])
        >>> merged.rank, merged.rows(0, 1)
        (2, tensor([[1.5000, 1.5000]]))
    """
    shape = updates[0].shape
    terms = [(u, w) for u, w in zip(updates, weights, strict=True) if w != 0 and not isinstance(u, Zero)]
    if not terms:
        return Zero(shape)
    factors = [(u, w) for u, w in terms if isinstance(u, LowRank)]
    if len(factors) == len(terms):
        left = torch.cat([u.left * w for u, w in factors], dim=1)
        return LowRank(left, torch.cat([u.right for u, _ in factors]))

    def rows(start: int, stop: int) -> torch.Tensor:
        first, weight = terms[0]
        out = first.rows(start, stop) * weight
        for update, factor in terms[1:]:
            out.add_(update.rows(start, stop), alpha=factor)
        return out

    streams = [u for u, _ in terms if isinstance(u, Streamed)]
    if streams:  # a sum in memory would be as large as what did not fit
        return Streamed(shape, rows, streams[0].dtype)
    return Dense(rows(0, shape[0]))
