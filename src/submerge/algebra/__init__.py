"""Updates and what can be computed of them; knows no file and no model."""

from submerge.algebra._block_moment import BlockMoment, add_products
from submerge.algebra._chunk import Chunk
from submerge.algebra._combine import WeightedSum, combine, total
from submerge.algebra._cores import CORES, Bank, Core, Triplets
from submerge.algebra._discriminant import Discriminant, discriminant_of, linear_discriminant
from submerge.algebra._factor_moment import FactorMoment
from submerge.algebra._frame import Frame, frame
from submerge.algebra._fused import FusedLayout
from submerge.algebra._group_overlap import Separation
from submerge.algebra._group_scores import (
    QUESTION_FLOOR,
    CosineScores,
    DiscriminantScores,
    GroupScores,
    grouped_discriminant,
)
from submerge.algebra._group_statistics import GroupStatistics
from submerge.algebra._layer_parameters import LayerKind, LayerParameter, merge_layer
from submerge.algebra._leading import Leading, leading
from submerge.algebra._least_squares import LPM_PRESETS, LpmOptions, merge_least_squares
from submerge.algebra._lengths import lengths
from submerge.algebra._lora import Factored, factored
from submerge.algebra._matching_pursuit import SparseCodes, matching_pursuit, pursuit_bytes
from submerge.algebra._moment import Moment
from submerge.algebra._overlap import KeptEnergy, kept_energy, principal_angles
from submerge.algebra._prototypes import Prototypes, k_means, similarity_weights
from submerge.algebra._random import bernoulli, keep_random, normal, random_words, stream_key, uniform
from submerge.algebra._random import coins as coins  # the old name of bernoulli
from submerge.algebra._reduce import ColumnGram, Gram, Reduction, Totals, exact_sum
from submerge.algebra._rows import row_products, row_sums
from submerge.algebra._select import kth_largest
from submerge.algebra._spectrum import GRAM_FLOOR, Svd, enough, inverse_root, polar, rooted, svd, tolerance
from submerge.algebra._sphere import karcher_coefficients, slerp_coefficients
from submerge.algebra._subspace import RankRule, Shared, shared_subspace
from submerge.algebra._triangle_moment import ProductSum, TriangleMoment
from submerge.algebra._update import Dense, LowRank, Streamed, Update, Zero, inner, weighted_sum

__all__ = [
    "CORES",
    "GRAM_FLOOR",
    "LPM_PRESETS",
    "QUESTION_FLOOR",
    "Bank",
    "BlockMoment",
    "Chunk",
    "ColumnGram",
    "Core",
    "CosineScores",
    "Dense",
    "Discriminant",
    "DiscriminantScores",
    "FactorMoment",
    "Factored",
    "Frame",
    "FusedLayout",
    "Gram",
    "GroupScores",
    "GroupStatistics",
    "KeptEnergy",
    "LayerKind",
    "LayerParameter",
    "Leading",
    "LowRank",
    "LpmOptions",
    "Moment",
    "ProductSum",
    "Prototypes",
    "RankRule",
    "Reduction",
    "Separation",
    "Shared",
    "SparseCodes",
    "Streamed",
    "Svd",
    "Totals",
    "TriangleMoment",
    "Triplets",
    "Update",
    "WeightedSum",
    "Zero",
    "add_products",
    "bernoulli",
    "combine",
    "discriminant_of",
    "enough",
    "exact_sum",
    "factored",
    "frame",
    "grouped_discriminant",
    "inner",
    "inverse_root",
    "k_means",
    "karcher_coefficients",
    "keep_random",
    "kept_energy",
    "kth_largest",
    "leading",
    "lengths",
    "linear_discriminant",
    "matching_pursuit",
    "merge_layer",
    "merge_least_squares",
    "normal",
    "polar",
    "principal_angles",
    "pursuit_bytes",
    "random_words",
    "rooted",
    "row_products",
    "row_sums",
    "shared_subspace",
    "similarity_weights",
    "slerp_coefficients",
    "stream_key",
    "svd",
    "tolerance",
    "total",
    "uniform",
    "weighted_sum",
]
