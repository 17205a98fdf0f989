"""Sums over runs: inner products and magnitudes, grouped alike on every processor.

The terms of a run of `RUN` elements are added in halves, in the values' type: the first half and the second,
the halves of what is left, and so on down to `LANES`. These are added one by one in float64, over all runs. A
processor may add as many terms at a time as it likes: the sums are the same.
"""

from __future__ import annotations

from submerge.deferred import np, npt
from submerge.kernels._kernel import kernel
from submerge.kernels._types import Floats

__all__ = ["add_column_products", "dot", "gram", "sum_magnitudes"]

RUN = 4096
LANES = 64


def _add_run(total: float, terms: Floats) -> float:
    half = terms.size // 2
    while half >= LANES:
        terms[:half] += terms[half : 2 * half]
        half //= 2
    for term in terms[:LANES].tolist():
        total += term
    return total


@kernel(_add_run)
def add_run(total: float, terms: Floats) -> float:
    """Return a total plus the sum of terms [RUN], or of half as many, which are overwritten."""
    half = terms.size // 2
    while half >= LANES:
        left, right = terms[:half], terms[half : 2 * half]
        for i in range(half):
            left[i] += right[i]
        half //= 2
    for j in range(LANES):
        total += terms[j]
    return total


def _add_products(total: float, x: Floats, y: Floats, terms: Floats) -> float:
    terms[: x.size] = x * y
    terms[x.size :] = 0
    return _add_run(total, terms)


@kernel(_add_products)
def add_products(total: float, x: Floats, y: Floats, terms: Floats) -> float:
    """Return a total plus Σ x_i y_i of up to `RUN` elements, by way of terms [RUN]."""
    half = RUN // 2
    if x.size == RUN:  # its halves are added at once
        left_x, right_x, left_y, right_y = x[:half], x[half:], y[:half], y[half:]
        for i in range(half):
            terms[i] = left_x[i] * left_y[i] + right_x[i] * right_y[i]
        total = add_run(total, terms[:half])
    else:
        for i in range(x.size):
            terms[i] = x[i] * y[i]
        terms[x.size :] = 0
        total = add_run(total, terms)
    return total


def _dot(a: Floats, b: Floats) -> float:
    terms, total = np.empty(RUN, a.dtype), 0.0
    for start in range(0, a.size, RUN):
        total = _add_products(total, a[start : start + RUN], b[start : start + RUN], terms)
    return total


@kernel(_dot)
def dot(a: Floats, b: Floats) -> float:
    """Return Σ a_i b_i of a [n] and b [n]."""
    terms = np.empty(RUN, a.dtype)
    total = 0.0
    for start in range(0, a.size, RUN):
        total = add_products(total, a[start : start + RUN], b[start : start + RUN], terms)
    return total


def _gram(rows: Floats, out: npt.NDArray[np.float64]) -> None:
    for s in range(len(rows)):
        for t in range(s, len(rows)):
            out[s, t] = out[t, s] = _dot(rows[s], rows[t])


@kernel(_gram)
def gram(rows: Floats, out: npt.NDArray[np.float64]) -> None:
    """Write the inner products [T, T] of rows [T, n], each as `dot` returns it."""
    terms = np.empty(RUN, rows.dtype)
    out[:] = 0
    for start in range(0, rows.shape[1], RUN):
        for s in range(rows.shape[0]):
            x = rows[s, start : start + RUN]
            for t in range(s, rows.shape[0]):
                out[s, t] = add_products(out[s, t], x, rows[t, start : start + RUN], terms)
    for s in range(rows.shape[0]):
        for t in range(s):
            out[s, t] = out[t, s]


def _sum(terms: Floats) -> float:
    total = 0.0
    for start in range(0, terms.size, RUN):
        run = np.zeros(RUN, terms.dtype)
        run[: terms.size - start] = terms[start : start + RUN]
        total = _add_run(total, run)
    return total


def _sum_magnitudes(values: Floats) -> float:
    return _sum(np.abs(values))


@kernel(_sum_magnitudes)
def sum_magnitudes(values: Floats) -> float:
    """Return Σ |x_i| of values [n]."""
    terms = np.empty(RUN, values.dtype)
    total = 0.0
    for start in range(0, values.size, RUN):
        x = values[start : start + RUN]
        for i in range(x.size):
            terms[i] = abs(x[i])
        terms[x.size :] = 0
        total = add_run(total, terms)
    return total


def _add_column_products(totals: npt.NDArray[np.float64], a: Floats, b: Floats) -> None:
    x, y = (rows.reshape(-1, totals.size).astype(np.float64) for rows in (a, b))
    for product in x * y:
        totals += product


@kernel(_add_column_products)
def add_column_products(totals: npt.NDArray[np.float64], a: Floats, b: Floats) -> None:
    """Add Σ_i a_ij b_ij to totals [width], in float64, for the rows i of a and b [rows · width] in order."""
    width = totals.size
    for start in range(0, a.size, width):
        x, y = a[start : start + width], b[start : start + width]
        for j in range(width):
            totals[j] += np.float64(x[j]) * np.float64(y[j])
