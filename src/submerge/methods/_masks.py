"""Sparsifiers of updates, by the paper: each plans what it must know, and returns an in-place mask.

A sparsifier is a generator like a method's plan; what it returns overwrites `chunk.updates` with
the masked updates. `rescaled` wraps any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from submerge.algebra import Chunk, Reduction, Totals, kth_largest
from submerge.deferred import np, torch
from submerge.errors import Problem, RequestError
from submerge.methods._base import TensorSpec, Values

__all__ = [
    "Mask",
    "MaskPlan",
    "Sparsifier",
    "keep_all",
    "magprune",
    "mask_outliers",
    "random_drop",
    "refuse_magprune",
    "rescaled",
    "trim",
]

Mask: TypeAlias = Callable[[Chunk], None]
"""Overwrites the updates of a chunk with the masked ones."""
MaskPlan: TypeAlias = Generator[Reduction[Any, Any], Any, Mask]
Sparsifier: TypeAlias = Callable[[TensorSpec, Values], MaskPlan]

SHORTEST = 1e-7
"""An L1 norm below this is not restored: it would be a division by noise."""


def keep_all(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep every entry."""
    return lambda chunk: None
    yield


def _magnitudes(chunk: Chunk, row: int) -> torch.Tensor:
    return torch.abs(chunk.updates[row], out=chunk.scratch(0))


def _clear_below(row: torch.Tensor, threshold: float) -> None:
    """Set entries of magnitude below the threshold to zero, in place and in one go.

    `hardshrink` clears magnitudes up to and with its argument, so it gets the number next below.
    """
    kind = np.float64 if row.dtype == torch.float64 else np.float32
    dropped = np.nextafter(kind(threshold), kind(-np.inf))
    torch.ops.aten.hardshrink.out(row, float(dropped), out=row)


def trim(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep the share `density` of the entries that is largest in magnitude, per tensor (TIES, trim).

    Entries that tie with the smallest one kept are kept too: which of them to drop would be
    arbitrary. Those of products tie where they are equal to rounding. (arXiv 2306.01708, step 1.)
    """
    densities = o["density"]
    ranks = [[max(1, int(d * spec.numel))] if 0 < d < 1 else [] for d in densities]
    smallest = yield from kth_largest(spec.numel, ranks, _magnitudes)  # of those that are kept
    thresholds = [
        s[0] if s else (0.0 if d >= 1 else float("inf")) for s, d in zip(smallest, densities, strict=True)
    ]
    if not any(thresholds):
        return lambda chunk: None

    def mask(chunk: Chunk) -> None:
        for row, threshold in zip(chunk.updates, thresholds, strict=True):
            if threshold > 0:
                _clear_below(row, threshold * (1 - chunk.rounding))

    return mask


def mask_outliers(spec: TensorSpec, o: Values) -> MaskPlan:
    """Drop the share `gamma` of largest magnitudes, then the smallest, until `density` is kept (Breadcrumbs).

    Where γ + density > 1 fewer outliers are dropped, so that density holds; ties at either end
    are kept. (arXiv 2312.06795.)
    """
    n = spec.numel
    ranks: list[list[int]] = []
    for density, gamma in zip(o["density"], o["gamma"], strict=True):
        keep = int(density * n)
        outliers = min(int(gamma * n), n - keep)
        ranks.append([] if density >= 1 or keep == 0 else [outliers + 1, outliers + keep])
    extremes = yield from kth_largest(n, ranks, _magnitudes)  # the largest and the smallest that are kept
    inf = float("inf")
    everything, nothing = [inf, 0.0], [-1.0, inf]
    ends = [e or (everything if d >= 1 else nothing) for e, d in zip(extremes, o["density"], strict=True)]

    def mask(chunk: Chunk) -> None:
        for t, (high, low) in enumerate(ends):
            if high < inf:
                chunk.updates[t].mul_(_magnitudes(chunk, t).le_(high * (1 + chunk.rounding)))
            if low > 0:
                _clear_below(chunk.updates[t], low * (1 - chunk.rounding))

    return mask


def random_drop(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep each entry with probability `density`, independently (DARE).

    `variant: paper` divides what is kept by its probability. (arXiv 2311.03099.)
    """
    densities = o["density"]
    unbiased = o["rescale"] and o["variant"] == "paper"

    def mask(chunk: Chunk) -> None:
        for t, density in enumerate(densities):
            if density < 1:
                ones = chunk.bernoulli(t, density)
                chunk.updates[t].mul_(ones.div_(density) if unbiased and density > 0 else ones)

    return mask
    yield


def refuse_magprune(spec: TensorSpec, o: Values) -> None:
    """Raise `RequestError` where a probability of `magprune` would be none."""
    for density, epsilon in zip(o["density"], o["epsilon"], strict=True):
        if 0 < density < 1 and not (0 < density - epsilon and density + epsilon < 1):
            what = f"density {density:g} ± epsilon {epsilon:g} leaves the range (0, 1)"
            hint = "choose epsilon below both density and 1 − density"
            raise RequestError(Problem(what, f"tensor {spec.name}", hint))


def magprune(spec: TensorSpec, o: Values) -> MaskPlan:
    """Keep entries with a probability that grows with their rank by magnitude in their row (DELLA, MagPrune).

    p_i = density − ε + 2ε (rank_i − 1)/(n − 1), rank 1 the smallest, rows along the last axis.
    `variant: paper` divides what is kept by p_i. (arXiv 2406.11617.)
    """
    unbiased = o["rescale"] and o["variant"] == "paper"

    def mask(chunk: Chunk) -> None:
        rows = chunk.rows
        for t, (density, epsilon) in enumerate(zip(o["density"], o["epsilon"], strict=True)):
            if density >= 1:
                continue
            if density <= 0:
                rows[t].zero_()
                continue
            probability = _relative_ranks(rows[t]).mul_(2 * epsilon).add_(density - epsilon)
            ones = chunk.draw(t).view_as(probability).lt(probability).to(rows.dtype)
            rows[t].mul_(ones.div_(probability) if unbiased else ones)

    return mask
    yield


def _relative_ranks(rows: torch.Tensor) -> torch.Tensor:
    """Return the rank by magnitude of each entry in its row, from 0 (smallest) to 1; ½ if it is alone."""
    width = rows.shape[-1]
    magnitudes = rows.abs().cpu().numpy()
    scale = np.linspace(0, 1, width, dtype=magnitudes.dtype) if width > 1 else np.full(1, 0.5)
    ranks = np.empty_like(magnitudes)
    np.put_along_axis(ranks, _ascending(magnitudes), np.broadcast_to(scale, ranks.shape), axis=-1)
    return torch.from_numpy(ranks).to(rows.device)


def _ascending(magnitudes: np.ndarray) -> np.ndarray:
    """Return the places of each row's entries from the smallest to the largest, equal ones in their order.

    Bits of floats that are not negative ascend with them. So 32 bits of magnitude above 32 bits of place are
    integers that any sort puts in this order, and those of integers are many times as fast as a stable one.
    """
    if magnitudes.dtype != np.float32:
        return np.argsort(magnitudes, axis=-1, kind="stable")
    keys = magnitudes.view(np.int32).astype(np.int64) << 32
    keys |= np.arange(magnitudes.shape[-1], dtype=np.int64)
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return keys


def rescaled(
    sparsifier: Sparsifier, spec: TensorSpec, o: Values
) -> Generator[Reduction[Any, Any], Any, tuple[Mask, list[float]]]:
    """Plan the sparsifier, and the factor for each model that restores its update's L1 norm.

    With `rescale` and mergekit's variant the factor is Σ|Δ| / Σ|masked Δ| over the tensor, which
    one more pass measures; with `variant: paper` the sparsifier itself divides by probabilities.
    """
    mask = yield from sparsifier(spec, o)
    by_probability = o.get("variant") == "paper" and sparsifier in (random_drop, magprune)
    if not o["rescale"] or by_probability:
        return mask, [1.0] * spec.count

    def norms(chunk: Chunk) -> torch.Tensor:
        before = chunk.updates.abs_().sum(1)  # no mask looks at signs
        mask(chunk)
        return torch.stack([before, chunk.updates.sum(1)])

    before, after = yield Totals(norms)
    return mask, [
        b / a if b >= SHORTEST and a >= SHORTEST else 1.0
        for b, a in zip(before.tolist(), after.tolist(), strict=True)
    ]
