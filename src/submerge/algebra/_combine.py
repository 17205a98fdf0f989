"""Sums over models, without temporaries of the stack's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from submerge.algebra._chunk import Chunk
from submerge.deferred import np, npt, torch
from submerge.kernels import MOST_ROWS, add_rows, scale

__all__ = ["WeightedSum", "combine", "total"]

if TYPE_CHECKING:
    Rows = TypeVar("Rows", "npt.NDArray[Any]", torch.Tensor)


def combine(rows: Rows, coefficients: Sequence[float]) -> Rows:
    """Return Σ c_t rows[t], shape [n], for rows [T, n], in the place of rows[0]; taken in order.

    Of an array (`chunk.values`) it is an array, by compiled loops; of a tensor (`chunk.updates`) a tensor.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import combine
        >>> combine(np.array([[1.0, 2.0], [10.0, 20.0]]), [1.0, 0.5]).tolist()
        [6.0, 12.0]
    """
    if isinstance(rows, np.ndarray):
        return _combine_arrays(rows, coefficients)
    result = rows[0].mul_(coefficients[0])
    for row, c in zip(rows[1:], coefficients[1:], strict=True):
        result.add_(row, alpha=c)
    return result


def _combine_arrays(rows: npt.NDArray[Any], coefficients: Sequence[float]) -> npt.NDArray[Any]:
    number = rows.dtype.type
    result: npt.NDArray[Any]
    (result, *others), (first, *rest) = rows, map(number, coefficients)
    if not rest:
        scale(result, first)
    for t in range(0, len(rest), MOST_ROWS):
        group = slice(t, t + MOST_ROWS)
        add_rows(result, first if t == 0 else number(1), tuple(others[group]), tuple(rest[group]))
    return result


@dataclass(frozen=True)
class WeightedSum:
    """The fold Σ c_t Δ_t: `combine` with the chunk's values.

    As an object it says what it computes: an engine may take the sum in the loop that converts what it reads,
    with the same bits.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import Chunk, WeightedSum
        >>> updates = np.array([[1.0, 2.0], [10.0, 20.0]])
        >>> chunk = Chunk(start=0, updates=updates, width=1, finite=True, keys=[0, 1])
        >>> WeightedSum([1.0, 0.5])(chunk).tolist()
        [6.0, 12.0]
    """

    coefficients: Sequence[float]

    def __call__(self, chunk: Chunk) -> npt.NDArray[Any]:
        return combine(chunk.values, self.coefficients)


def total(rows: torch.Tensor | Sequence[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """Return Σ_t rows[t], shape [n], in `out`; the rows are left as they are.

    Examples:
        >>> import torch
        >>> from submerge.algebra import total
        >>> total(torch.tensor([[1.0, 2.0], [10.0, 20.0]]), out=torch.empty(2))
        tensor([11., 22.])
    """
    result = out.copy_(rows[0])
    for row in rows[1:]:
        result.add_(row)
    return result
