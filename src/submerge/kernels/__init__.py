"""Loops over runs of elements, compiled by numba, with the same bits from numpy where numba is not there."""

from submerge.kernels._counts import count_above, count_around
from submerge.kernels._kernel import Kernel, kernel, uses_numba
from submerge.kernels._masks import keep_between, keep_where
from submerge.kernels._products import add_column_products, dot, sum_magnitudes
from submerge.kernels._random import HashKey, keep_random, random_words
from submerge.kernels._ranks import bound_ranks, compare_at_bounds, compare_open, rank
from submerge.kernels._sums import MOST_ROWS, add_rows, add_scaled, scale
from submerge.kernels._types import Floats, Number, Words
from submerge.kernels._variance import add_deviations, subtract_square
from submerge.kernels._vote import vote, vote_few

__all__ = [
    "MOST_ROWS",
    "Floats",
    "HashKey",
    "Kernel",
    "Number",
    "Words",
    "add_column_products",
    "add_deviations",
    "add_rows",
    "add_scaled",
    "bound_ranks",
    "compare_at_bounds",
    "compare_open",
    "count_above",
    "count_around",
    "dot",
    "keep_between",
    "keep_random",
    "keep_where",
    "kernel",
    "random_words",
    "rank",
    "scale",
    "subtract_square",
    "sum_magnitudes",
    "uses_numba",
    "vote",
    "vote_few",
]
