"""Least squares over the inputs of layers that are no plain matrix: biases, embeddings, gains of norms.

Each of these is linear in its parameters, y = Θ x̃, for inputs x̃ that are made of the layer's own:

    layer        its parameters            Θ             x̃                     C = Σ x̃ᵀ x̃ is
    linear       W [m, n], b [m]           [W | b]       (x, 1)                [n + 1, n + 1]
    transposed   W [n, m], b [m]           [Wᵀ | b]      (x, 1)                the same (GPT-2's Conv1D)
    embedding    E [V, d]                  Eᵀ            one-hot               diagonal: counts of V ids
    norm         g [n], b [n]              (g_j, b_j)    (x̂_j, 1) of each j    n blocks [2, 2]

A convolution is linear in its patches, with W [m, n] its kernels of n values. x̂ is the normalised input, so
that y = g ⊙ x̂ + b. Without b, x̃ lacks its constant 1: C is [n, n] of a linear map, diagonal of a norm.

Weight and bias are the least-squares solution together, Θ̂ = (Σ Θ_t C_t) Φ⁻¹. Each is merged by itself, given
the updates of the other: the weight are the first columns of Θ̂; the bias is its last one,

    b̂ = Θ̂ e = Σ_t Θ_t (C_t φ),     φ = Φ⁻¹ e,

for which each update is multiplied by one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from submerge.algebra._block_moment import BlockMoment
from submerge.algebra._least_squares import LpmOptions, dtype_of, entering, merge_least_squares
from submerge.algebra._moment import Moment
from submerge.algebra._triangle_moment import TriangleMoment
from submerge.algebra._update import Dense, LowRank, Streamed, Update, Zero
from submerge.deferred import torch

__all__ = ["LayerKind", "LayerParameter", "merge_layer"]

LayerKind: TypeAlias = Literal["linear", "transposed", "embedding", "norm"]
"""The kinds of layers that `merge_layer` knows."""


@dataclass(frozen=True)
class LayerParameter:
    """Which parameter of which kind of layer a tensor is; see `merge_layer`.

    Examples:
        >>> from submerge.algebra import LayerParameter
        >>> LayerParameter("norm", "bias").kind
        'norm'
    """

    kind: LayerKind = "linear"
    name: Literal["weight", "bias"] = "weight"


def merge_layer(
    parameter: LayerParameter,
    updates: Sequence[Update],
    partner: Sequence[Update] | None,
    moments: Iterable[Moment],
    options: LpmOptions | None = None,
    on_sum: Callable[[Moment], None] = lambda _: None,
) -> Update:
    """Return the merged update of one parameter of a layer: low-rank where `merge_least_squares` is.

    Args:
        parameter: which one.
        updates: of each task: [m, n] of a linear map's weight, [n, m] of a transposed one's, [V, d] of
            embeddings, and [n, 1] of what is a vector.
        partner: the updates of the layer's other parameter, in these shapes. Where there is none, or all are
            zero, it stays the base's, and this one is the solution for that.
        moments: C_t of each task; of x̃ with its constant 1 where there is a partner or a bias, else of
            either. They are read twice for a bias.
        options: `LpmOptions()` by default. `energy` is for linear maps alone: what is diagonal is not
            truncated.
        on_sum: called with Φ when it has been solved; not for an embedding, whose Φ is diagonal.

    Raises:
        ValueError: as of `merge_least_squares`.

    Examples:
        A token that one task alone has gets that task's row, and one that no task has the mean.

        >>> import torch
        >>> from submerge.algebra import BlockMoment, Dense, LayerParameter, merge_layer
        >>> counts = [torch.tensor([3.0, 1.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])]
        >>> moments = [BlockMoment(c.view(3, 1, 1), c.sum()) for c in counts]
        >>> tables = [Dense(torch.ones(3, 1)), Dense(torch.full((3, 1), 2.0))]
        >>> merge_layer(LayerParameter("embedding"), tables, None, moments).dense().T.round(decimals=2)
        tensor([[1.5700, 1.0000, 1.5000]])
    """
    options = options or LpmOptions()
    if parameter.kind == "embedding":
        return _merge_table(updates, moments, replace(options, energy=1.0))
    if parameter.kind == "norm":
        options = replace(options, energy=1.0)
    if partner is None or not (_any_change(updates) and _any_change(partner)):
        return _merge_alone(parameter, updates, moments, options, on_sum)
    pairs = zip(updates, partner, strict=True)
    if parameter.name == "bias":
        pairs = zip(partner, updates, strict=True)
    if parameter.kind == "norm":
        merged = merge_least_squares([_interleaved(*pair) for pair in pairs], moments, options, on_sum)
        return Dense(merged.dense().view(-1, 2)[:, [0 if parameter.name == "weight" else 1]])
    joined = [_joined(_as_map(parameter.kind, weight), bias) for weight, bias in pairs]
    if parameter.name == "bias":
        return _last_column(joined, moments, options, on_sum)
    merged = merge_least_squares(joined, moments, options, on_sum)
    return _as_map(parameter.kind, _without_last(merged))


def _any_change(updates: Sequence[Update]) -> bool:
    """Return whether an update is not zero: what all models leave as it was, a merge does, too."""
    return any(
        isinstance(update, LowRank) or any(bool(block.any()) for _, block in update.blocks(update.dtype))
        for update in updates
        if isinstance(update, (LowRank, Dense, Streamed))
    )


def _merge_alone(
    parameter: LayerParameter,
    updates: Sequence[Update],
    moments: Iterable[Moment],
    options: LpmOptions,
    on_sum: Callable[[Moment], None],
) -> Update:
    """Return the merge of a parameter whose layer has no other one, or one that no model changes."""
    turned = parameter.name == "weight" or parameter.kind == "norm"
    kind = parameter.kind if turned else "linear"
    rows = [_as_map(kind, update) for update in updates]
    if not _any_change(rows):
        return Zero(updates[0].shape)
    own = (_alone(moment, parameter, rows[0].shape[1]) for moment in moments)
    return _as_map(kind, merge_least_squares(rows, own, options, on_sum))


def _alone(moment: Moment, parameter: LayerParameter, n: int) -> Moment:
    """Return the moment of the n inputs of one parameter: constants 1 are the last of each block."""
    first = parameter.name == "weight"
    if moment.width != n and isinstance(moment, TriangleMoment):
        return replace(
            moment, triangle=moment.triangle[: n * (n + 1) // 2] if first else moment.triangle[-1:]
        )
    if moment.width != n and isinstance(moment, BlockMoment):
        last = moment.sum.shape[1] - 1
        own = slice(last) if first else slice(last, None)
        return replace(moment, sum=moment.sum[:, own, own])
    return moment


def _last_column(
    updates: Sequence[Update],
    moments: Iterable[Moment],
    options: LpmOptions,
    on_sum: Callable[[Moment], None],
) -> Update:
    """Return λ Σ_t Θ_t (C_t φ), [m, 1]: the last column of Θ̂."""
    phi: Moment | None = None
    for _, moment in entering(updates, moments, options):
        phi = moment if phi is None else phi.added(moment)
    assert phi is not None
    last = torch.zeros(1, phi.width, dtype=torch.float64)
    last[0, -1] = 1
    solved = phi.solve(last)
    on_sum(phi)
    terms = (
        update.matmul(moment.times(solved).cpu().T)
        for update, moment in entering(updates, moments, options)
        if update is not None
    )
    return Dense(torch.stack(list(terms)).sum(0).mul_(options.scale).to(dtype_of(updates)))


def _without_last(update: Update) -> Update:
    """Return an update without its last column."""
    if isinstance(update, LowRank):
        return LowRank(update.left, update.right[:, :-1])
    return Dense(update.dense()[:, :-1])


def _merge_table(updates: Sequence[Update], moments: Iterable[Moment], options: LpmOptions) -> Update:
    """Return Σ_t diag(w_t) Δ_t with w_t = c_t / Σ c_s, which is computed as its rows are asked for."""
    rows, width = updates[0].shape
    dtype = dtype_of(updates)
    terms = [
        (update, moment.times(torch.ones(1, rows))[0].cpu())
        for update, moment in entering(updates, moments, options)
    ]
    totals = torch.stack([counts for _, counts in terms]).sum(0)
    if not totals.any():
        raise ValueError("no task has inputs here")
    weighed = [
        (update, options.scale * _shares(counts, totals).unsqueeze(1))
        for update, counts in terms
        if update is not None
    ]
    if all(isinstance(update, LowRank) for update, _ in weighed):
        factors = [(w * u.left.double(), u.right) for u, w in weighed if isinstance(u, LowRank)]
        left = torch.cat([left for left, _ in factors], dim=1).to(dtype)
        return LowRank(left, torch.cat([right for _, right in factors]))

    def read(start: int, stop: int) -> torch.Tensor:
        terms = (u.rows(start, stop).double() * w[start:stop] for u, w in weighed)
        return sum(terms, torch.zeros(stop - start, width, dtype=torch.float64)).to(dtype)

    return Streamed((rows, width), read, dtype)


def _shares(counts: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """Return a task's share of each row's counts; where none has any, of all counts, as a ridge would."""
    return torch.where(totals > 0, counts / totals, counts.sum() / totals.sum())


def _joined(weight: Update, bias: Update) -> Update:
    """Return [W | b], in factors where the weight is."""
    m, n = weight.shape
    if isinstance(weight, (LowRank, Zero)):
        return _joined_factors(weight, bias)

    def read(start: int, stop: int) -> torch.Tensor:
        return torch.cat([update.rows(start, stop) for update in (weight, bias)], dim=1)

    return Streamed((m, n + 1), read, dtype_of([weight]))


def _joined_factors(weight: LowRank | Zero, bias: Update) -> Update:
    """Return [L | b] · [[R, 0], [0, 1]], without what is zero."""
    m, n = weight.shape
    dtype = weight.left.dtype if isinstance(weight, LowRank) else torch.float32
    left, right = [], []
    if isinstance(weight, LowRank):
        left.append(weight.left)
        right.append(torch.nn.functional.pad(weight.right, (0, 1)))
    if not isinstance(bias, Zero):
        left.append(bias.dense().to(dtype))
        right.append(torch.nn.functional.pad(torch.ones(1, 1, dtype=dtype), (n, 0)))
    return LowRank(torch.cat(left, 1), torch.cat(right)) if left else Zero((m, n + 1))


def _interleaved(gain: Update, bias: Update) -> Update:
    """Return (g_1, b_1, g_2, b_2, …) as [1, 2 n]."""
    if isinstance(gain, Zero) and isinstance(bias, Zero):
        return Zero((1, 2 * gain.shape[0]))
    return Dense(torch.cat([gain.dense(), bias.dense()], dim=1).reshape(1, -1))


def _as_map(kind: LayerKind, update: Update) -> Update:
    """Return a weight as a matrix with a column for each input, or such a matrix as the weight."""
    if kind in ("linear", "embedding"):
        return update
    if isinstance(update, Zero):
        return Zero((update.shape[1], update.shape[0]))
    if isinstance(update, LowRank):
        return LowRank(update.right.T, update.left.T)
    return Dense(update.dense().T)
