"""SSAM: every update is projected into the singular subspace that all share, and merged there.

With U and V the k leading eigenvectors of Σ_t Δ_t Δ_tᵀ and Σ_t Δ_tᵀ Δ_t,

    M_t = Uᵀ Δ_t V,     θ = θ_0 + λ U (Σ_t w_t M_t) Vᵀ.

What lies outside of the subspace is dropped as conflict, unless `residual` β adds β Σ w_t (Δ_t − U M_t Vᵀ)
to the sum. λ multiplies the sum: 1/T, the default, gives the mean. Projection is linear, so that the sum
may come first: SSAM is task arithmetic behind one filter, except with the mergers `ties` (the entries of
M_t that have the sign of their sum) and `median`.

`single: keep` passes what one model alone touches as it is, w_t Δ_t. Tensors that are no matrices have no
subspace and become λ Σ w_t Δ_t. Queries, keys and values that are stored as one matrix have bases each.
SSAM, arXiv 2603.21584; 2DSVD, Ding & Ye 2005. The paper's rank and λ are not known to us; the default
rank makes the result as large as the largest update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from submerge.algebra import (
    Gram,
    LowRank,
    RankRule,
    Shared,
    Update,
    Zero,
    combine,
    frame,
    shared_subspace,
    weighted_sum,
)
from submerge.deferred import torch
from submerge.methods._base import FoldPlan, Merged, Method, Option, TensorSpec, Values
from submerge.methods._fused import FUSED, by_map
from submerge.methods._matrix import WEIGHT, refused
from submerge.methods._sign_consensus import disjoint_merge

__all__ = ["METHODS"]

OPTIONS = (
    WEIGHT,
    Option("scale", float, "auto", "factor λ on the sum; auto: 1/T, the mean", tune=True, word="auto"),
    Option("rank", str, "max", "shared directions: number, max, full, energy:τ or frac:p", tune=True),
    Option("residual", float, 0.0, "share β of what lies outside that is kept", low=0, high=1),
    Option("normalize", str, "none", "fro: find the subspace of Δ_t/‖Δ_t‖", choices=("none", "fro")),
    Option("refine_iters", int, 0, "alternations that fit both sides together", low=0, high=100),
    Option("sides", str, "both", "sides that are projected", choices=("both", "left", "right")),
    Option("core", str, "full", "diag: only M_t's diagonal", choices=("full", "diag")),
    Option("core_merge", str, "sum", "how the M_t are merged", choices=("sum", "mean", "ties", "median")),
    Option("single", str, "truncate", "what one model alone touches", choices=("truncate", "keep")),
    Option("denominator", str, "all", "present: T counts who changes the tensor", choices=("all", "present")),
    FUSED,
)

AVERAGES = ("mean", "median")
"""Values of `core_merge` that divide by T themselves."""
TIED = "the rank cuts between equal directions: which of them are shared is arbitrary (choose another rank)"


def _refuse(spec: TensorSpec, o: Values) -> None:
    try:
        RankRule.parse(o["rank"])
    except ValueError as error:
        raise refused(spec, str(error), "rank: max makes the result as large as one update") from None
    if o["core"] == "diag" and o["sides"] != "both":
        raise refused(spec, "core: diag needs a square core", "leave sides: both")


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    count = spec.count
    if o["denominator"] == "present":
        gram = yield Gram()
        count = int((gram.diagonal() > 0).sum())
    scale = _linear_scale(count, o)
    factors = [scale * w for w in o["weight"]]
    return lambda chunk: combine(chunk.values, factors)


def _scale(count: int, o: Values) -> float:
    """Return λ for so many models; `auto` makes an average of whatever the merger returns."""
    if o["scale"] != "auto":
        return float(o["scale"])
    return 1.0 if o["core_merge"] in AVERAGES else 1 / max(1, count)


def _linear_scale(count: int, o: Values) -> float:
    """Return the factor on Σ w_t Δ_t where no merger of cores has divided by T."""
    return _scale(count, o) / (max(1, count) if o["core_merge"] in AVERAGES else 1)


def _matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    weights = o["weight"]
    energies = [u.norm**2 for u in updates]
    touching = [t for t, energy in enumerate(energies) if energy]
    if not touching:
        return Merged(Zero(updates[0].shape), {"k": 0, "passed": False})
    if len(touching) == 1 and o["single"] == "keep":
        (t,) = touching
        return Merged(updates[t].scaled(weights[t]), {"k": 0, "passed": True})
    counted = touching if o["denominator"] == "present" else range(spec.count)
    shared = _shared_bases(updates, o)
    cores = [_core(shared, update, o) for update in updates]  # M_t
    inside = [float(core.square().sum()) for core in cores]
    weighted = [cores[t] * weights[t] for t in counted]
    merged = _scale(len(counted), o) * _merge_cores(weighted, o["core_merge"])
    terms, factors = list[Update](), list[float]()
    if o["residual"]:  # β Σ w_t (Δ_t − U M_t Vᵀ): all of the updates, less the cores
        beta = _linear_scale(len(counted), o) * o["residual"]
        merged -= beta * reduce(torch.add, weighted)
        terms, factors = list(updates), [beta * w for w in weights]
    result = weighted_sum([_lift(shared, merged, o["sides"]), *terms], [1.0, *factors])
    return Merged(result, _figures(shared, inside, energies))


def _figures(shared: Shared, inside: Sequence[float], energies: Sequence[float]) -> dict[str, Any]:
    """Return the report's figures; `kept` is the share of ‖Δ_t‖² in the subspace, of all and of each."""
    return {
        "k": max(shared.u.shape[1], shared.v.shape[1]),
        "kept_left": shared.kept_left,
        "kept_right": shared.kept_right,
        "kept": min(1.0, math.fsum(inside) / math.fsum(energies)),
        "kept_each": [min(1.0, i / e) if e else 1.0 for i, e in zip(inside, energies, strict=True)],
        "tied": shared.tied,
        **({"warning": TIED} if shared.tied else {}),
    }


def _shared_bases(updates: Sequence[Update], o: Values) -> Shared:
    """Return U and V in the weight's own coordinates, in the data's dtype."""
    rule = RankRule.parse(o["rank"])
    if rule.kind != "energy":  # by the ranks of the updates: their cores show less of it
        rule = RankRule("int", rule.bound(updates))
    core_space = frame(updates)
    norms = [u.norm for u in updates] if o["normalize"] == "fro" else None
    shared = shared_subspace(core_space.cores, rule, norms=norms, refine=o["refine_iters"])
    u = shared.u if core_space.left is None else core_space.left @ shared.u
    v = shared.v if core_space.right is None else core_space.right @ shared.v
    return replace(shared, u=u.to(core_space.dtype), v=v.to(core_space.dtype))


def _core(shared: Shared, update: Update, o: Values) -> torch.Tensor:
    """Return M_t = Uᵀ Δ_t V, or for one side Uᵀ Δ_t or Δ_t V."""
    if o["sides"] == "left":
        return update.rmatmul(shared.u.T)
    if o["sides"] == "right":
        return update.matmul(shared.v)
    core = shared.core(update)
    return core * torch.eye(*core.shape, dtype=core.dtype) if o["core"] == "diag" else core


def _merge_cores(weighted: Sequence[torch.Tensor], how: str) -> torch.Tensor:
    """Return the merger of the w_t M_t; never one of them itself."""
    if how == "ties":
        return disjoint_merge([core.clone() for core in weighted], None)
    if how == "median":
        ordered = torch.stack(list(weighted)).sort(dim=0).values
        middle = len(weighted) // 2
        return (ordered[middle] + ordered[-1 - middle]) / 2
    total = reduce(torch.add, weighted, torch.zeros_like(weighted[0]))
    return total / len(weighted) if how == "mean" else total


def _lift(shared: Shared, merged: torch.Tensor, sides: str) -> LowRank:
    """Return U M Vᵀ, or for one side U M or M Vᵀ."""
    if sides == "left":
        return LowRank(shared.u, merged)
    if sides == "right":
        return LowRank(merged, shared.v.T)
    return LowRank(shared.u @ merged, shared.v.T)


METHODS = (
    Method(
        name="ssam",
        title="SSAM (singular subspace alignment and merging)",
        equation="θ = θ_0 + λ U (Σ w_t Uᵀ Δ_t V) Vᵀ, U and V from Σ Δ_t Δ_tᵀ and Σ Δ_tᵀ Δ_t",
        source="Reza et al. 2026, arXiv 2603.21584",
        use="Adapters of one base, one for a modality each: one of the same rank holds what they share.",
        plan=_plan,
        refuse=_refuse,
        matrix=by_map(_matrix),
        both_sides=True,
        options=OPTIONS,
        differs="rank and λ of the paper are not known; here max and 1/T",
    ),
)
