"""MASS: one truncated subspace per task; each input runs through the merge of the tasks that it looks like.

Offline every update is cut to its leading r triplets, Δ_t ≈ U_t diag(s_t) V_t with r = ⌊min(m, n) / T⌋.
They go to the bank, and TSV-M merges them all into one plain checkpoint. Online a first pass finds the tasks
S whose right singular vectors V_t explain an activation best; a second one runs θ_0 + Δ_S with

    Δ_S = polar([U_t]_{t∈S}) diag([s_t]) polar([V_t])   (TSV-M over S alone).

Of tensors without singular vectors (norms, biases, convolutions, weights with a side shorter than T) the bank
has each task's dense update, and S gets their mean. Tables (embeddings, output heads) may be as long as a
vocabulary: the bank has r triplets of each task's update, the checkpoint gets the mean of the updates at full
rank, as TSV-M has it, and S that of the triplets.

The gate's settings are in `_mass_options`, and what they mean to the router in `_routing_settings`.
Crisostomi et al. 2026, arXiv 2504.05342.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from submerge.algebra import Bank, Dense, RankRule, Triplets, Update, Zero, enough, svd, weighted_sum
from submerge.deferred import torch
from submerge.methods._base import FoldPlan, GateSpec, Merged, Method, TensorSpec, Values
from submerge.methods._layer_rule import LayerRule
from submerge.methods._mass_options import (
    OPTIONS,
    PRESETS,
    bank_bound,
    bank_dtype,
    bank_rank,
    gate_settings,
    refuse,
)
from submerge.methods._matrix import mean_plan
from submerge.methods._routing_settings import POSITIONS, Pooling, RoutingSettings, Score, routes_on_base

__all__ = [
    "METHODS",
    "POSITIONS",
    "PRESETS",
    "LayerRule",
    "Pooling",
    "RoutingSettings",
    "Score",
    "routes_on_base",
]


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    """Plan the mean: the rule for tensors without elements, for the gate's `matrix` gets all others."""
    return mean_plan(spec, {"scale": 1.0, "weight": [1.0] * spec.count})


def _matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    rule = bank_rank(spec, o)
    if rule is None:
        return _dense(updates, spec, o)
    parts, figures = _truncated(updates, rule, bank_dtype(o))
    factors = {f"{t}.{name}": factor for t, part in parts.items() for name, factor in vars(part).items()}
    if spec.table:
        return _table(updates, spec, o, factors, figures)
    bank = Bank((spec.shape[0], spec.shape[1]), parts)
    merged = _dissimilar(bank, o["similarity"])
    if len(merged) < len(parts):
        figures["fixed"] = list(merged)
    static = Zero(bank.shape) if o["fixed"] == "base" else bank.merged(merged, o["fixed"], o["scale"])
    return Merged(static, figures, factors)


def _truncated(
    updates: Sequence[Update], rule: RankRule, dtype: torch.dtype
) -> tuple[dict[int, Triplets], dict[str, Any]]:
    """Return U_t [m, r], s_t [r] and V_t [r, n] of each update that is not zero, by t, and their figures.

    They are rounded as the bank stores them, so that the checkpoint is made of what the bank holds: the base
    can be computed from both.
    """
    parts: dict[int, Triplets] = {}
    energies: list[float] = []
    for t, update in enumerate(updates):
        triplets = svd(update) if rule.kind == "energy" else svd(update, int(rule.value))
        square = update.norm**2
        if not len(triplets.s) or not square:
            continue
        if rule.kind == "energy":
            triplets = triplets.cut(enough(triplets.s.double().square(), rule.value))
        energies.append(min(1.0, float(triplets.s.double().square().sum()) / square))
        u, s, v = triplets.u, triplets.s, triplets.v
        parts[t] = Triplets(u.to(dtype), s.float(), v.T.contiguous().to(dtype))
    figures: dict[str, Any] = {"rank": max((part.rank for part in parts.values()), default=0)}
    if energies:
        figures["energy"] = math.fsum(energies) / len(energies)
    return parts, figures


def _dissimilar(bank: Bank, most: float) -> tuple[int, ...]:
    """Return the tasks whose update has a cosine of at most `most` with those of all accepted before it."""
    accepted: list[int] = []
    for t in bank.parts:
        if most >= 1 or all(bank.cosine(a, t) <= most for a in accepted):
            accepted.append(t)
    return tuple(accepted)


def _table(
    updates: Sequence[Update],
    spec: TensorSpec,
    o: Values,
    factors: Mapping[str, torch.Tensor],
    figures: Mapping[str, Any],
) -> Merged:
    """Return the mean of a table's updates at full rank, beside the factors of each.

    The truncated factors do not determine that mean, so that the bank has it, too: the base is the checkpoint
    less the mean.
    """
    figures = {**figures, "table": True}
    if o["fixed"] == "base" or not factors:
        return Merged(Zero(updates[0].shape), figures, factors)
    mean = weighted_sum(updates, [o["scale"] / spec.count] * spec.count).dense().to(bank_dtype(o))
    return Merged(Dense(mean.float()), figures, {**factors, "merged": mean})


def _dense(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    """Return the mean of updates that have no singular vectors, beside each update itself."""
    shape = updates[0].shape
    if o["others"] == "base":
        return Merged(Zero(shape))
    changes = {t: update.dense() for t, update in enumerate(updates) if not isinstance(update, Zero)}
    bank = {
        t: (change.reshape(spec.shape) * o["scale"]).to(bank_dtype(o))
        for t, change in changes.items()
        if bool(change.count_nonzero())
    }
    static: Update = Zero(shape)
    if bank and o["fixed"] != "base":
        # of the rounded updates, so that the base can be computed from the checkpoint and the bank
        terms = [Dense(update.float().reshape(shape)) for update in bank.values()]
        static = weighted_sum(terms, [1 / spec.count] * len(terms))
    return Merged(static, bank={f"{t}.whole": update for t, update in bank.items()})


METHODS = (
    Method(
        name="mass",
        title="MASS (adaptive subspace selection)",
        equation="θ = θ_0 + polar([U_t]) diag([s_t]) polar([V_t]) over the tasks t that an input selects",
        source="Crisostomi et al. 2026, arXiv 2504.05342",
        use="Many tasks served as one model when nobody says which task an input belongs to.",
        plan=_plan,
        matrix=_matrix,
        options=OPTIONS,
        gate=GateSpec(
            settings=gate_settings,
            bound=bank_bound,
            every_tensor=True,
            own_heads=True,
            partial_models=True,
            assembles=True,
            usage=(
                "out = model(**inputs)  # finds the task of each; inputs as the base's processor gives them",
                "out.tasks, out.logits  # and of classifiers out.labels",
                "model(**inputs, task={task})  # where the task is known",
            ),
        ),
        refuse=refuse,
        differs="the default router averages over all layers and runs one task; preset: paper is the paper's",
    ),
)
