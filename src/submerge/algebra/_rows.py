"""Sums along the rows of matrices."""

from __future__ import annotations

from typing import Any

from submerge.deferred import np, npt

__all__ = ["row_products", "row_sums"]


def row_products(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return Σ_j x_ij y_ij for each row i of x and y [rows, width], float64.

    The terms of a row are added in halves, so that the sums are the same on every processor.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import row_products
        >>> row_products(np.array([[1.0, 2.0], [3.0, 4.0]]), np.ones((2, 2))).tolist()
        [3.0, 7.0]
    """
    terms = x.astype(np.float64)
    terms *= y
    return _add_halves(terms)


def row_sums(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return Σ_j x_ij for each row i of x [rows, width], float64, added as in `row_products`.

    Examples:
        >>> import numpy as np
        >>> from submerge.algebra import row_sums
        >>> row_sums(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [3.0, 7.0]
    """
    return _add_halves(x.astype(np.float64))


def _add_halves(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sum of each row of terms [rows, width], which are overwritten."""
    width = terms.shape[1]
    while width > 1:
        half = -(-width // 2)
        terms[:, : width - half] += terms[:, half:width]
        width = half
    return terms[:, 0]
