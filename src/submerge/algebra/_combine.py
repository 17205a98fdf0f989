"""Sums over models, without temporaries of the stack's size."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.deferred import torch

__all__ = ["combine", "total"]


def combine(rows: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    """Return Σ c_t rows[t], shape [n], for rows [T, n], in the place of rows[0]; taken in order.

    Examples:
        >>> import torch
        >>> from submerge.algebra import combine
        >>> combine(torch.tensor([[1.0, 2.0], [10.0, 20.0]]), [1.0, 0.5])
        tensor([ 6., 12.])
    """
    result = rows[0].mul_(coefficients[0])
    for row, c in zip(rows[1:], coefficients[1:], strict=True):
        result.add_(row, alpha=c)
    return result


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
