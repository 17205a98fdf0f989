"""Runs of values that are hard for a kernel, and its loop beside its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from submerge.kernels import Kernel

__all__ = ["DTYPES", "LENGTHS", "assert_same", "both", "hard_values", "runs"]

DTYPES = (np.float32, np.float64)
LENGTHS = (0, 1, 2, 63, 64, 65, 200, 2047, 2049, 4095, 4096, 4097, 8200)
"""Around the blocks in which kernels work."""


def hard_values(seed: int, n: int, dtype: Any, *, special: bool = True) -> np.ndarray:
    """Return n values: of any size, subnormal, rounded so that many are equal, ±0; `special`: NaN and ±∞."""
    random = np.random.default_rng(seed)
    tiny = np.finfo(dtype).smallest_subnormal
    kinds = [
        random.standard_normal(n),
        random.standard_normal(n) * 10.0 ** random.integers(-30, 30, n),
        random.integers(-3, 4, n).astype(float),
        random.integers(-5, 6, n).astype(float) * float(tiny),
        random.choice([0.0, -0.0], n),
    ]
    if special:
        kinds.append(random.choice([np.nan, np.inf, -np.inf], n))
    shares = random.dirichlet(np.full(len(kinds), 0.5))
    with np.errstate(over="ignore"):
        return np.choose(random.choice(len(kinds), n, p=shares), kinds).astype(dtype)


def runs(special: bool = True) -> st.SearchStrategy[np.ndarray]:
    """Return runs of hard values, float32 or float64."""
    return st.builds(
        lambda seed, n, dtype: hard_values(seed, n, dtype, special=special),
        st.integers(0, 2**32 - 1),
        st.sampled_from(LENGTHS),
        st.sampled_from(DTYPES),
    )


def _copied(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(_copied, argument))
    return argument.copy() if isinstance(argument, np.ndarray) else argument


def both(kernel: Kernel, *arguments: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return what loop and reference return, and their arguments afterwards."""
    results = []
    for function in (kernel.compiled(), kernel.reference):
        own = _copied(arguments)
        with np.errstate(all="ignore"):
            results.append((function(*own), own))
    return results


def assert_same(kernel: Kernel, *arguments: Any) -> None:
    """Assert that loop and reference return and write the same bits, but for those of NaN."""
    (value, written), (wanted, by_reference) = both(kernel, *arguments)
    assert_bits(np.asarray(0.0 if value is None else value), np.asarray(0.0 if wanted is None else wanted))
    for one, other in zip(written, by_reference, strict=True):
        if isinstance(one, np.ndarray):
            assert_bits(one, other)


def assert_bits(one: np.ndarray, other: np.ndarray) -> None:
    """Assert that two arrays have the same bits; NaN is NaN, whatever its bits."""
    assert one.dtype == other.dtype
    if one.dtype.kind == "f":
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        one, other = (np.where(np.isnan(x), x.dtype.type(0), x) for x in (one, other))
        one, other = (x.view(f"u{x.itemsize}") for x in (one, other))
    np.testing.assert_array_equal(one, other)
