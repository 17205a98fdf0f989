"""Loops over runs of elements, compiled by numba, with the same bits from numpy where numba is not there."""

from submerge.kernels._changes import add_shares, count_changed, count_unique
from submerge.kernels._counts import count_above, count_around
from submerge.kernels._finite import array_type, count_nonfinite, is_finite
from submerge.kernels._guarded_sums import gram, sum_magnitudes, sum_squares
from submerge.kernels._kernel import Kernel, compiling_for, kernel, uses_numba, worth_compiling
from submerge.kernels._load import load
from submerge.kernels._logarithms import exponentials, logarithms
from submerge.kernels._masks import clip, keep_between, keep_where
from submerge.kernels._products import add_column_products
from submerge.kernels._random import HashKey, keep_random, random_words
from submerge.kernels._ranks import keep_by_rank, rank
from submerge.kernels._store import store
from submerge.kernels._sums import MOST_RAWS, MOST_ROWS, add_rows, scale, sum_bf16, sum_updates_bf16
from submerge.kernels._types import Floats, Number, Words
from submerge.kernels._variance import variance
from submerge.kernels._vote import vote, vote_few

__all__ = [
    "MOST_RAWS",
    "MOST_ROWS",
    "Floats",
    "HashKey",
    "Kernel",
    "Number",
    "Words",
    "add_column_products",
    "add_rows",
    "add_shares",
    "array_type",
    "clip",
    "compiling_for",
    "count_above",
    "count_around",
    "count_changed",
    "count_nonfinite",
    "count_unique",
    "exponentials",
    "gram",
    "is_finite",
    "keep_between",
    "keep_by_rank",
    "keep_random",
    "keep_where",
    "kernel",
    "load",
    "logarithms",
    "random_words",
    "rank",
    "scale",
    "store",
    "sum_bf16",
    "sum_magnitudes",
    "sum_squares",
    "sum_updates_bf16",
    "uses_numba",
    "variance",
    "vote",
    "vote_few",
    "worth_compiling",
]
