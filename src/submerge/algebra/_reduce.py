"""Reductions: what a method learns about a whole tensor from one pass over its chunks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from threading import Lock
from typing import Any, Generic, TypeAlias, TypeVar

from submerge.algebra._chunk import Chunk
from submerge.deferred import np, npt, torch
from submerge.kernels import add_column_products, gram

__all__ = ["ColumnGram", "Gram", "Reduction", "Totals", "exact_sum"]

P = TypeVar("P")
R = TypeVar("R")
Matrix: TypeAlias = "npt.NDArray[np.float64]"


class Reduction(ABC, Generic[P, R]):
    """One pass over a tensor: `observe` each chunk (any thread, any order), then `combine`.

    `combine` receives the parts in the order of the chunks, whose boundaries do not depend on
    threads or memory, so the result has the same bits in every run. With `sample` the pass
    visits a few short, evenly spread runs instead of the whole tensor.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Chunk, Reduction
        >>> class Largest(Reduction):
        ...     def observe(self, chunk):
        ...         return chunk.updates.abs().amax(1).tolist()
        ...
        ...     def combine(self, parts):
        ...         return [max(values) for values in zip(*parts, strict=True)]
        >>> chunk = Chunk(0, torch.tensor([[1.0, 2.0], [3.0, -1.0]]), width=1, finite=True, keys=[0, 1])
        >>> largest = Largest()
        >>> largest.combine([largest.observe(chunk)])
        [2.0, 3.0]
    """

    sample: bool = False

    @abstractmethod
    def observe(self, chunk: Chunk) -> P:
        """Return what this chunk contributes."""

    @abstractmethod
    def combine(self, parts: Sequence[P]) -> R:
        """Return the result for the tensor."""


def exact_sum(parts: Sequence[Matrix]) -> Matrix:
    """Return Σ parts elementwise, rounded once (Shewchuk), so that their order cannot matter.

    Args:
        parts: float64 arrays of one shape.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import exact_sum
        >>> float(exact_sum([np.array([1e16]), np.array([1.0]), np.array([-1e16])])[0])
        1.0
    """
    stacked = np.stack(parts).reshape(len(parts), -1)
    total = np.array([_fsum(column) for column in stacked.T.tolist()])
    return total.reshape(parts[0].shape)


def _fsum(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # a sum beyond float64; ∞ − ∞
        return sum(values)


class Gram(Reduction[Matrix, Matrix]):
    """G[s, t] = ⟨Δ_s, Δ_t⟩ over the whole tensor, shape [T, T], float64.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import Chunk, Gram
        >>> chunk = Chunk(0, np.array([[1.0, 2.0], [3.0, -1.0]]), width=1, finite=True, keys=[0, 1])
        >>> gram = Gram()
        >>> gram.combine([gram.observe(chunk)]).tolist()
        [[5.0, 1.0], [1.0, 10.0]]
    """

    def observe(self, chunk: Chunk) -> Matrix:
        """Return the chunk's T×T inner products."""
        products = np.empty((len(chunk.values),) * 2)
        gram(chunk.values, products)
        return products

    def combine(self, parts: Sequence[Matrix]) -> Matrix:
        """Return the sum over chunks."""
        return exact_sum(parts)


class ColumnGram(Reduction[None, Matrix]):
    """G[s, t, j] = Σ_i Δ_s[i, j] Δ_t[i, j] over the rows i, shape [T, T, width], float64.

    A part is as large as the result, so that it cannot be held until the pass is over: parts are added as
    soon as all those before them are, for a sum in another order would have other bits.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import Chunk, ColumnGram
        >>> updates = np.array([[1.0, 2.0, 3.0, 4.0]])  # one model; two rows of two columns
        >>> columns = ColumnGram()
        >>> columns.observe(Chunk(0, updates, width=2, finite=True, keys=[0]))
        >>> columns.combine([None]).tolist()
        [[[10.0, 20.0]]]
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._early: dict[int, tuple[int, Matrix]] = {}  # by first element; what follows, the part
        self._next = 0
        self._total: Matrix | None = None

    def observe(self, chunk: Chunk) -> None:
        """Add the chunk's inner products, one for each column, in the order of the chunks."""
        rows = chunk.values
        part = np.zeros((len(rows), len(rows), chunk.width))
        for s, t in combinations_with_replacement(range(len(rows)), 2):
            add_column_products(part[s, t], rows[s], rows[t])
            part[t, s] = part[s, t]
        with self._lock:
            self._early[chunk.start] = chunk.start + rows.shape[1], part
            while self._next in self._early:
                self._next, part = self._early.pop(self._next)
                self._total = part if self._total is None else np.add(self._total, part, out=self._total)

    def combine(self, parts: Sequence[None]) -> Matrix:
        """Return the sum over chunks."""
        assert self._total is not None  # a tensor has at least one chunk
        return self._total


class Totals(Reduction[Matrix, Matrix]):
    """Σ f(chunk) over the chunks, where f returns a small vector of per-model sums.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Chunk, Totals
        >>> chunk = Chunk(0, torch.tensor([[1.0, 2.0], [3.0, -1.0]]), width=1, finite=True, keys=[0, 1])
        >>> magnitudes = Totals(lambda chunk: chunk.updates.abs().sum(1))
        >>> magnitudes.combine([magnitudes.observe(chunk)]).tolist()
        [3.0, 4.0]
    """

    def __init__(self, of: Callable[[Chunk], list[Any] | npt.NDArray[Any] | torch.Tensor]) -> None:
        self.of = of

    def observe(self, chunk: Chunk) -> Matrix:
        """Return f(chunk), a list or an array or a tensor, in float64."""
        sums: Any = self.of(chunk)
        if isinstance(sums, (list, np.ndarray)):
            return np.asarray(sums, np.float64)
        return np.asarray(sums.double().cpu().numpy())

    def combine(self, parts: Sequence[Matrix]) -> Matrix:
        """Return the sum over chunks."""
        return exact_sum(parts)
