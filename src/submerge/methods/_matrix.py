"""What the methods that merge whole matrices share: plans for other tensors, and products of their parts."""

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
    "Block",
    "agreeing",
    "assembled",
    "block",
    "gram",
    "is_tall",
    "mean_plan",
    "negligible",
    "product",
    "refused",
    "times",
    "touching",
]

WEIGHT = Option("weight", float, 1.0, "factor on each model's update", scope="model")


def refused(spec: TensorSpec, what: str, hint: str) -> RequestError:
    """Return the error that says which option of a tensor's cannot be, and what can."""
    return RequestError(Problem(what, f"tensor {spec.name}", hint))


def mean_plan(spec: TensorSpec, o: Values) -> FoldPlan:
    """Plan scale/T Σ w_t Δ_t: what becomes of tensors that have no singular vectors."""
    factors = [o["scale"] * w / spec.count for w in o["weight"]]
    return lambda chunk: combine(chunk.updates, factors)
    yield  # no statistic is needed


def touching(frame: Frame, weights: Sequence[float]) -> list[tuple[Update, float]]:
    """Return the frame's cores that are not zero, with their weights, where these are not zero either."""
    pairs = zip(frame.cores, weights, strict=True)
    return [(core, weight) for core, weight in pairs if weight and not isinstance(core, Zero)]


def is_tall(update: Update) -> bool:
    """Return whether the short side of a weight is its inputs, so that Gram matrices are Δᵀ Δ."""
    return update.shape[0] >= update.shape[1]


def negligible(frame: Frame) -> float:
    """Return the share of the largest singular value that is rounding in the frame's cores."""
    return max(GRAM_FLOOR, tolerance(frame.cores[0].shape, frame.dtype))


def gram(update: Update) -> torch.Tensor:
    """Return the Gram matrix of the short side, in float64."""
    return update.column_gram() if is_tall(update) else update.row_gram()


def times(update: Update, x: torch.Tensor) -> torch.Tensor:
    """Return Δ x, or Δᵀ x for a wide update, for float64 x on the short side.

    Rounded to the update's dtype, and computed in float64: small singular values are sums of large terms.
    """
    if not isinstance(update, (Dense, Streamed)):
        return update.matmul(x) if is_tall(update) else update.rmatmul(x.T).T
    if not is_tall(update):
        return update.rmatmul(x.T).T.to(update.dtype)
    return _rows_times(update, x)


def product(update: Update, factor: torch.Tensor) -> Update:
    """Return Δ C, or C Δ for a wide update, for a float64 factor C on the short side."""
    found = times(update, factor if is_tall(update) else factor.T)
    return Dense(found if is_tall(update) else found.T)


def _rows_times(update: Dense | Streamed, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(update.shape[0], x.shape[1], dtype=update.dtype)
    for at, rows in update.blocks(x.dtype):
        out[at] = rows @ x
    return out


@dataclass(frozen=True)
class Block:
    """Some of an update's singular triplets: values s, vectors of the short side, and s times the others."""

    s: torch.Tensor
    short: torch.Tensor
    long: torch.Tensor


def block(update: Update, share: float, k: int | None = None) -> Block:
    """Return the leading k triplets, from one Gram matrix and one product."""
    s, short = rooted(gram(update), share, k)
    return Block(s, short, times(update, short))


def assembled(blocks: Sequence[Block], frame: Frame) -> Update:
    """Return polar(U) diag(s) polar(V)ᵀ, for U, s and V those of the blocks of a frame's cores side by side.

    polar(X) = X (XᵀX)^(−1/2), on the range of X. The vectors of the long side enter as the images Δ_t V_t,
    whose Gram matrix says how they must be turned and scaled. Each factor is turned by its own half: where
    directions nearly coincide, the product of the halves has large entries, which rounding would not survive.
    """
    shape, share = frame.cores[0].shape, negligible(frame)
    if not any(len(b.s) for b in blocks):
        return Zero(shape)
    s = torch.cat([b.s for b in blocks])
    long = torch.cat([b.long for b in blocks], dim=1)
    short = torch.cat([b.short for b in blocks], dim=1)
    squares = Dense(long).column_gram()
    lengths = squares.diagonal().sqrt()
    turn = inverse_root(squares / lengths / lengths.unsqueeze(1), share) * s / lengths.unsqueeze(1)
    other = inverse_root(short.T @ short, share) @ short.T
    tall = shape[0] >= shape[1]
    if frame.left is None and frame.right is None:
        merged = _rows_times(Dense(long), turn @ other)
        return Dense(merged if tall else merged.T)
    long = long @ turn
    return LowRank(long, other) if tall else LowRank(other.T, long.T)


def agreeing(terms: Sequence[torch.Tensor], weights: Sequence[float] | None) -> torch.Tensor:
    """Return the sum of the terms' entries that have the sign of their sum, + where that is 0.

    With weights, divided by the sum of those that took part (0 counts for nothing). Overwrites the terms.
    """
    sign = terms[0].clone()
    for term in terms[1:]:
        sign += term
    sign.ge_(0).mul_(2).sub_(1)
    total = torch.zeros_like(sign)
    divisor = torch.zeros_like(sign)
    for t, term in enumerate(terms):
        total += term.mul_(sign).clamp_(min=0)
        if weights is not None:
            divisor.add_(term > 0, alpha=weights[t])
    if weights is not None:
        total.div_(divisor.add_(divisor == 0))
    return total.mul_(sign)
