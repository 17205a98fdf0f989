"""The methods that merge matrices whole, from their formulas, by plain SVDs of full size in float64.

A reference takes the updates as one tensor [T, m, n], and the options with one value a model where they are
the models' own. Nothing here is shared with the library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Options = Mapping[str, Any]
SAME = 1 - 1e-9
"""Magnitudes that differ by less are equal: they are computed."""


def weighted(x: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Return Σ w_t x_t."""
    return sum(w * row for w, row in zip(weights, x, strict=True))


def truncated(
    x: torch.Tensor, k: int, share: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the leading k singular triplets (u, s, v) of x, none beyond its numerical rank."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    k = min(k, int((s > share * s[0]).sum())) if s.numel() and s[0] > 0 else 0
    return u[:, :k], s[:k], vh[:k].T


def polar_of(x: torch.Tensor) -> torch.Tensor:
    """Return u vᵀ over the numerical range of x."""
    u, _, v = truncated(x, min(x.shape))
    return u @ v.T


def joined(parts: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Return triplets side by side."""
    return tuple(torch.cat([p[i] for p in parts], dim=-1) for i in range(3))


def cat(x: torch.Tensor, o: Options) -> torch.Tensor:
    return o["scale"] * weighted(x, o["weight"])


def tsv_m(x: torch.Tensor, o: Options) -> torch.Tensor:
    k = max(1, min(x[0].shape) // len(x)) if o["rank"] == "auto" else o["rank"]
    parts = [truncated(row, k) for row in x]
    u, s, v = joined([(u, w * s, v) for w, (u, s, v) in zip(o["weight"], parts, strict=True)])
    return o["scale"] * polar_of(u) @ torch.diag(s) @ polar_of(v).T


def mass(x: torch.Tensor, o: Options) -> torch.Tensor:
    """Return what the plain checkpoint of MASS is: TSV-M of all tasks."""
    return tsv_m(x, {"rank": min(x[0].shape) // len(x), "weight": [1.0] * len(x), "scale": o["scale"]})


def iso_c(x: torch.Tensor, o: Options) -> torch.Tensor:
    total = weighted(x, o["weight"])
    u, s, v = truncated(total, min(total.shape))
    return o["scale"] * s.mean() * u @ v.T


def iso_cts(x: torch.Tensor, o: Options) -> torch.Tensor:
    deltas = [w * row for w, row in zip(o["weight"], x, strict=True)]
    total = sum(deltas)
    q = len(truncated(total, min(total.shape))[1])
    own = min(q // len(deltas), round((q - int(o["fraction"] * q)) / len(deltas)))
    common = truncated(total, q - len(deltas) * own)
    parts = [common]
    for delta in deltas:
        rest = delta - common[0] @ (common[0].T @ delta)
        if own and rest.norm() > 1e-8 * delta.norm():
            parts.append(truncated(rest, own))
    u, s, v = joined(parts)
    return o["scale"] * s.mean() * polar_of(u) @ polar_of(v).T


def mean(x: torch.Tensor, o: Options) -> torch.Tensor:
    """Return λ Σ w_t Δ_t / Σ w_t: what least squares give without moments."""
    return cat(x, o) / sum(o["weight"])


def knots_ties(x: torch.Tensor, o: Options) -> torch.Tensor:
    stack = torch.cat(list(x), dim=1)
    u, s, v = truncated(stack, min(stack.shape))
    terms = []
    for block, weight, density in zip((s * v).T.chunk(len(x), dim=1), o["weight"], o["density"], strict=True):
        kept = min(int(density * block.numel()) + 1, block.numel()) if density else 0
        limit = block.abs().flatten().sort(descending=True).values[kept - 1] if kept else torch.inf
        terms.append(weight * torch.where(block.abs() >= limit * SAME, block, 0))
    trimmed = torch.stack(terms)
    agrees = trimmed.sign() == torch.where(trimmed.sum(0) >= 0, 1, -1)
    result = (trimmed * agrees).sum(0)
    if o["normalize"]:
        divisor = (agrees * torch.tensor(o["weight"], dtype=x.dtype)[:, None, None]).sum(0)
        result = result / torch.where(divisor == 0, 1, divisor)
    return o["scale"] * u @ result


def ssam(x: torch.Tensor, o: Options) -> torch.Tensor:
    """Return λ Σ w_t U Uᵀ Δ_t V Vᵀ, for a number of directions."""
    k = int(o["rank"])
    u = torch.linalg.eigh(sum(row @ row.T for row in x))[1].flip(1)[:, :k]
    v = torch.linalg.eigh(sum(row.T @ row for row in x))[1].flip(1)[:, :k]
    scale = 1 / len(x) if o["scale"] == "auto" else o["scale"]
    return scale * u @ (u.T @ weighted(x, o["weight"]) @ v) @ v.T


def wudi(x: torch.Tensor, o: Options) -> torch.Tensor:
    """Return Δ_0 + (Δ* − Δ_0) V f Vᵀ with V from the SVD of the stacked Δ_t / ‖Δ_t‖.

    Δ* is the least-squares solution of Δ (Δ_t / ‖Δ_t‖)ᵀ = w_t Δ_t (Δ_t / ‖Δ_t‖)ᵀ for all t at once.
    """
    taken = [(row, w) for row, w in zip(x, o["weight"], strict=True) if w and row.norm() > 0]
    start = weighted(x, o["weight"])
    if not taken:
        return start
    u, s, v = truncated(torch.cat([row / row.norm() for row, _ in taken]), x.shape[2])
    targets = torch.cat([w * row @ (row / row.norm()).T for row, w in taken], dim=1)
    minimum = targets @ (u / s) @ v.T
    if o["variant"] == "aswudi":
        f = (torch.arange(len(s)) < s.sum() ** 2 / s.square().sum() * SAME).double()
    else:
        k = -int(-o["fraction"] * x.shape[2] * SAME // 1)
        f = (1 - (-s.square() * o["time"]).exp()) * (torch.arange(len(s)) < k)
    return o["scale"] * (start + (minimum - start) @ (v * f) @ v.T)


FORMULAS: dict[str, Callable[[torch.Tensor, Options], torch.Tensor]] = {
    formula.__name__: formula for formula in (cat, knots_ties, tsv_m, iso_c, iso_cts, ssam, wudi, mass)
} | {"nsc": cat, "many": mean, "regmean": mean}
