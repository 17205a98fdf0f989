"""Lengths of rows and columns whose squares may leave the range of float32."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.deferred import torch

__all__ = ["lengths"]

SHORT, LONG = 2.0**-50, 2.0**60
"""Lengths between which all squares that count in them are in the range of float32."""


def lengths(x: torch.Tensor, dim: int | Sequence[int], *, keepdim: bool = False) -> torch.Tensor:
    """Return the Euclidean norms of x over `dim`, in its type.

    Where some of them are very short or long, all are computed once more in float64: squares of entries above
    1e19 or below 1e-19 are no numbers of float32. A length that is none either is NaN: what is divided by
    infinity would be zero, and look like a result.

    Examples:
        >>> import torch
        >>> from submerge.algebra import lengths
        >>> lengths(torch.tensor([[3e30, 4e30], [3.0, 4.0]]), dim=1)
        tensor([5.0000e+30, 5.0000e+00])
    """
    dims = [dim] if isinstance(dim, int) else list(dim)
    found: torch.Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=keepdim)
    if bool(((found > SHORT) & (found < LONG)).all()):
        return found
    again: torch.Tensor = torch.linalg.vector_norm(x.double(), dim=dims, keepdim=keepdim).to(x.dtype)
    return again.masked_fill(again.isinf(), torch.nan)
