"""Updates and what can be computed of them; knows no file and no model."""

from submerge.algebra._chunk import Chunk
from submerge.algebra._combine import combine, total
from submerge.algebra._random import coins, stream_key, uniform
from submerge.algebra._reduce import ColumnGram, Gram, Reduction, Totals, exact_sum
from submerge.algebra._select import kth_largest
from submerge.algebra._sphere import karcher_coefficients, slerp_coefficients

__all__ = [
    "Chunk",
    "ColumnGram",
    "Gram",
    "Reduction",
    "Totals",
    "coins",
    "combine",
    "exact_sum",
    "karcher_coefficients",
    "kth_largest",
    "slerp_coefficients",
    "stream_key",
    "total",
    "uniform",
]
