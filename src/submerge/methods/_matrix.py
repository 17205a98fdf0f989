"""What the methods built on singular vectors share: the plan for other tensors, products, decompositions.

A matrix of full rank is decomposed by the Gram matrix of its short side, in float64. So its vectors of the
short side come as they are, and those of the long side as their images under Δ, which are s times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from submerge.algebra import (
    GRAM_FLOOR,
    Dense,
    Frame,
    LowRank,
    Streamed,
    Update,
    Zero,
    combine,
    inverse_root,
    rooted,
    tolerance,
)
from submerge.deferred import torch
from submerge.errors import Problem, RequestError
from submerge.methods._base import FoldPlan, Option, TensorSpec, Values

__all__ = [
    "WEIGHT",
    "SingularBlock",
    "is_tall",
    "leading_block",
    "mean_plan",
    "negligible",
    "orthogonalised",
    "refused",
    "short_side_gram",
    "short_side_matmul",
    "short_side_product",
    "touching",
]

WEIGHT = Option("weight", float, 1.0, "factor on each model's update", scope="model")


def refused(spec: TensorSpec, what: str, hint: str) -> RequestError:
    """Return the error that says which option of a tensor's cannot be, and what can."""
    return RequestError(Problem(what, f"tensor {spec.name}", hint))


def mean_plan(spec: TensorSpec, o: Values) -> FoldPlan:
    """Plan scale/T Σ w_t Δ_t: what becomes of tensors that have no singular vectors."""
    yield from ()  # no reduction is needed
    factors = [o["scale"] * w / spec.count for w in o["weight"]]
    return lambda chunk: combine(chunk.values, factors)


def touching(core_space: Frame, weights: Sequence[float]) -> list[tuple[Update, float]]:
    """Return the cores that are not zero, with their weights, where these are not zero either."""
    pairs = zip(core_space.cores, weights, strict=True)
    return [(core, weight) for core, weight in pairs if weight and not isinstance(core, Zero)]


def is_tall(update: Update) -> bool:
    """Return whether the short side of a weight is its inputs, so that Gram matrices are Δᵀ Δ."""
    return update.shape[0] >= update.shape[1]


def negligible(core_space: Frame) -> float:
    """Return the share of the largest singular value that is rounding in the cores of the updates."""
    return max(GRAM_FLOOR, tolerance(core_space.cores[0].shape, core_space.dtype))


def short_side_gram(update: Update) -> torch.Tensor:
    """Return the Gram matrix of the short side, in float64."""
    return update.column_gram() if is_tall(update) else update.row_gram()


def short_side_matmul(update: Update, x: torch.Tensor) -> torch.Tensor:
    """Return Δ x, or Δᵀ x for a wide update, for float64 x on the short side.

    Computed in float64, for small singular values are sums of large terms. Of a dense update the result has
    as many rows as its long side: it is rounded to the update's dtype, which takes half the memory.
    """
    if not isinstance(update, (Dense, Streamed)):
        return update.matmul(x) if is_tall(update) else update.rmatmul(x.T).T
    if not is_tall(update):
        return update.rmatmul(x.T).T.to(update.dtype)
    return _rounded_matmul(update, x)


def short_side_product(update: Update, factor: torch.Tensor) -> Update:
    """Return Δ C, or C Δ for a wide update, for a float64 factor C on the short side."""
    if is_tall(update):
        return Dense(short_side_matmul(update, factor))
    return Dense(short_side_matmul(update, factor.T).T)


def _rounded_matmul(update: Dense | Streamed, x: torch.Tensor) -> torch.Tensor:
    """Return Δ x for float64 x, in the update's dtype, without a float64 array of all rows."""
    out = torch.empty(update.shape[0], x.shape[1], dtype=update.dtype)
    for at, rows in update.blocks(x.dtype):
        out[at] = rows @ x
    return out


@dataclass(frozen=True)
class SingularBlock:
    """Some singular triplets of an update: values s [k], vectors of the short side, s times the others."""

    s: torch.Tensor
    short: torch.Tensor
    long: torch.Tensor


def leading_block(update: Update, share: float, k: int | None = None) -> SingularBlock:
    """Return the leading k triplets, from one Gram matrix and one product; none with s ≤ share · s_1."""
    s, short = rooted(short_side_gram(update), share, k)
    return SingularBlock(s, short, short_side_matmul(update, short))


def orthogonalised(blocks: Sequence[SingularBlock], core_space: Frame) -> Update:
    """Return polar(U) diag(s) polar(V)ᵀ, for U, s and V those of the blocks of the cores side by side.

    polar(X) = X (XᵀX)^(−1/2), on the range of X. The vectors of the long side enter as the images Δ_t V_t,
    whose Gram matrix says how they must be combined and scaled. Each factor is multiplied by its own root:
    where directions nearly coincide, the product of the roots has large entries that cancel only when both
    factors are applied, and rounded to float32 they would no longer.
    """
    shape, share = core_space.cores[0].shape, negligible(core_space)
    if not any(len(b.s) for b in blocks):
        return Zero(shape)
    s = torch.cat([b.s for b in blocks])
    long = torch.cat([b.long for b in blocks], dim=1)
    short = torch.cat([b.short for b in blocks], dim=1)
    squares = Dense(long).column_gram()
    lengths = squares.diagonal().sqrt()
    long_root = inverse_root(squares / lengths / lengths.unsqueeze(1), share) * s / lengths.unsqueeze(1)
    short_polar = inverse_root(short.T @ short, share) @ short.T
    tall = shape[0] >= shape[1]
    if core_space.left is None and core_space.right is None:
        merged = _rounded_matmul(Dense(long), long_root @ short_polar)
        return Dense(merged if tall else merged.T)
    long_polar = long @ long_root
    return LowRank(long_polar, short_polar) if tall else LowRank(short_polar.T, long_polar.T)
