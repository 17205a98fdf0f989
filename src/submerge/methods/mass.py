"""MASS: one truncated subspace per task; each input runs through the merge of the tasks that it looks like.

Offline every update is cut to its leading r triplets, Δ_t ≈ U_t diag(s_t) V_t with r = ⌊min(m, n) / T⌋.
They are kept, and TSV-M merges them all into one plain checkpoint. Online a first pass finds the tasks S
whose right singular vectors V_t explain an activation best; a second one runs θ_0 + Δ_S with

    Δ_S = polar([U_t]_{t∈S}) diag([s_t]) polar([V_t])   (TSV-M over S alone).

Tensors without singular vectors (norms, biases, convolutions, weights with a side shorter than T) keep each
task's whole update, and S gets their mean. Tables (embeddings, output heads) may be as long as a vocabulary:
each task keeps r triplets of its update, the checkpoint gets the mean of the whole updates, as TSV-M has it,
and S that of the triplets.
Crisostomi et al. 2026, arXiv 2504.05342.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from submerge.algebra import Bank, Dense, RankRule, Triplets, Update, Zero, enough, svd, weighted_sum
from submerge.deferred import torch
from submerge.errors import Problem, RequestError
from submerge.methods._base import FoldPlan, Keeps, Merged, Method, Option, TensorSpec, Values
from submerge.methods._layer_rule import LayerRule, layer_numbers, paper_site
from submerge.methods._matrix import mean_plan, refused
from submerge.methods._routing_settings import POSITIONS, Pooling, RoutingSettings, Score, routes_on_base

__all__ = [
    "METHODS",
    "POSITIONS",
    "PRESETS",
    "LayerRule",
    "Pooling",
    "RoutingSettings",
    "Score",
    "layer_numbers",
    "paper_site",
    "routes_on_base",
]


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    """Check the options of a tensor; the fold is the mean, for tensors that hold nothing."""
    _rank(spec, o)
    return mean_plan(spec, {"scale": 1.0, "weight": [1.0] * spec.count})


def _dtype(o: Values) -> torch.dtype:
    found: torch.dtype = getattr(torch, o["bank_dtype"])
    return found


def _rank(spec: TensorSpec, o: Values) -> RankRule | None:
    """Return how many triplets are kept of each update, or None where whole updates are, or nothing is."""
    rule = _compression(spec, o)
    if len(spec.shape) != 2 or min(spec.shape) < 2 or (spec.table and o["others"] == "base"):
        return None
    return rule if rule.kind != "int" or rule.value >= 1 else None


def _compression(spec: TensorSpec, o: Values) -> RankRule:
    least = min(spec.shape, default=0)
    if o["rank"] != "auto" and o["compression"] != "auto":
        raise refused(spec, "both rank and compression are given", "keep one of them")
    if o["rank"] != "auto":
        return RankRule("int", min(o["rank"], least))
    name, _, number = o["compression"].partition(":")
    if name == "auto" and not number:
        return RankRule("int", least // spec.count)
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if name not in ("energy", "ratio") or not 0 < share <= 1:
        hint = "write energy:0.9 or ratio:0.125, with a share in (0, 1]"
        raise refused(spec, f"compression is {o['compression']!r}", hint)
    return RankRule("energy", share) if name == "energy" else RankRule("int", int(share * least + 1e-9))


def _kept(spec: TensorSpec, o: Values, rank: int) -> Keeps:
    """Return the most that is kept of an update of a rank (0: not known)."""
    rule, size = _rank(spec, o), _dtype(o).itemsize
    if rule is None:
        return Keeps(0 if o["others"] == "base" else size * spec.numel)
    most = min(spec.shape) if rule.kind == "energy" else int(rule.value)
    most = min(most, rank or most)
    shared = size * spec.numel if spec.table and o["fixed"] != "base" else 0
    return Keeps(most * (size * sum(spec.shape) + 4), most, shared)


def _matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    rule = _rank(spec, o)
    if rule is None:
        return _whole(updates, spec, o)
    dtype = _dtype(o)
    parts: dict[int, Triplets] = {}
    kept: list[float] = []
    for t, update in enumerate(updates):
        found = svd(update) if rule.kind == "energy" else svd(update, int(rule.value))
        norm = update.norm**2
        if not len(found.s) or not norm:
            continue
        if rule.kind == "energy":
            found = found.cut(enough(found.s.double().square(), rule.value))
        kept.append(min(1.0, float(found.s.double().square().sum()) / norm))
        parts[t] = Triplets(found.u.to(dtype), found.s.float(), found.v.T.contiguous().to(dtype))
    factors = {f"{t}.{k}": v for t, p in parts.items() for k, v in vars(p).items()}
    figures: dict[str, Any] = {"rank": max((p.rank for p in parts.values()), default=0)}
    if kept:
        figures["energy"] = math.fsum(kept) / len(kept)
    if spec.table:
        return _table(updates, spec, o, factors, figures)
    bank = Bank((spec.shape[0], spec.shape[1]), parts)
    chosen = _dissimilar(bank, o["similarity"])
    update = Zero(bank.shape) if o["fixed"] == "base" else bank.merged(chosen, o["fixed"], o["scale"])
    if len(chosen) < len(parts):
        figures["fixed"] = list(chosen)
    return Merged(update, figures, factors)


def _table(
    updates: Sequence[Update],
    spec: TensorSpec,
    o: Values,
    factors: Mapping[str, torch.Tensor],
    figures: Mapping[str, Any],
) -> Merged:
    """Return the mean of a table's updates, beside the factors of each.

    Triplets that were cut do not tell it, so that it is kept, too: the base is the checkpoint less that.
    """
    figures = {**figures, "table": True}
    if o["fixed"] == "base" or not factors:
        return Merged(Zero(updates[0].shape), figures, factors)
    mean = weighted_sum(updates, [o["scale"] / spec.count] * spec.count).dense().to(_dtype(o))
    return Merged(Dense(mean.float()), figures, {**factors, "merged": mean})


def _dissimilar(bank: Bank, most: float) -> tuple[int, ...]:
    """Return the tasks whose update has a cosine of at most `most` with those of all accepted before it."""
    chosen: list[int] = []
    for t in bank.parts:
        if most >= 1 or all(bank.cosine(a, t) <= most for a in chosen):
            chosen.append(t)
    return tuple(chosen)


def _whole(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    """Keep every update whole; what is merged is their mean."""
    dtype = _dtype(o)
    if o["others"] == "base":
        return Merged(Zero(updates[0].shape))
    found = {t: u.dense() for t, u in enumerate(updates) if not isinstance(u, Zero)}
    kept = {
        t: (d.reshape(spec.shape) * o["scale"]).to(dtype) for t, d in found.items() if bool(d.count_nonzero())
    }
    if o["fixed"] == "base":
        return Merged(Zero(updates[0].shape), kept={f"{t}.whole": d for t, d in kept.items()})
    # the rounded updates, so that the base can be told from the merge and the bank
    terms: list[Update] = [Dense(d.float().reshape(updates[0].shape)) for d in kept.values()]
    mean = weighted_sum(terms, [1 / spec.count] * len(terms)) if terms else Zero(updates[0].shape)
    return Merged(mean, kept={f"{t}.whole": d for t, d in kept.items()})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {
        "score": "residual",
        "first_pass": "merged",
        "head_evidence": "none",
        "routing_layers": "paper",
        "routing_sites": "paper",
        "pooling": "paper",
        "select": "threshold",
        "heads": "max",
        "group_mean": "residuals",
    },
    "fast": {"passes": "one", "score": "gaussian"},
}
"""The gate's options that a preset changes; what a recipe gives comes first."""


def _settings(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, Any]:
    """Return the gate's settings: the recipe's, else the preset's, else the defaults."""
    from submerge.store import layer_of  # here: to list the methods, no file need be understood

    sides = [min(s) for name, s in shapes.items() if len(s) == 2 and layer_of(name) is not None]
    problems = []
    if sides and count > median(sides):
        what = f"{count} tasks do not fit into weights of rank {median(sides):g}: none would keep a direction"
        problems.append(Problem(what, "models", "serve fewer tasks in one model"))
    found = {o.name: o.default for o in OPTIONS if o.single}
    found |= {**PRESETS[given.get("preset", "default")], **given}
    try:
        problems += LayerRule.parse(str(found["routing_layers"])).problems(shapes)
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems)
    return found


def _gate(name: str, default: str | float | int, help: str, **more: Any) -> Option:
    kind: Any = type(default)
    return Option(name, kind, default, help, single=True, **more)


OPTIONS = (
    Option("rank", int, "auto", "triplets kept of each update; auto: min(m, n) / T", low=1, word="auto"),
    Option("compression", str, "auto", "in the place of a rank: energy:0.9 or ratio:0.125"),
    Option(
        "bank_dtype", str, "float32", "number format of the bank", choices=("float32", "bfloat16", "float16")
    ),
    Option("scale", float, 1.0, "factor α on the merged update", single=True),
    Option(
        "fixed",
        str,
        "tsv_m",
        "what the plain checkpoint is; base: the base itself",
        choices=("tsv_m", "iso_c", "base"),
        single=True,
    ),
    Option(
        "similarity",
        float,
        1.0,
        "updates with a larger cosine to an earlier one's stay out of the checkpoint; 1 keeps all",
        low=-1,
        high=1,
    ),
    Option(
        "others",
        str,
        "mean",
        "tensors that are no matrices: the mean of the tasks' updates, or none",
        choices=("mean", "base"),
        single=True,
    ),
    _gate("preset", "default", "what the options below are by default", choices=tuple(PRESETS)),
    _gate("aggregate", "tsv_m", "how the chosen tasks are merged", choices=("tsv_m", "iso_c", "sum")),
    _gate(
        "first_pass",
        "auto",
        "the model that routes; auto: the base, or with one pass the merge, whose blocks are shared",
        choices=("auto", "merged", "base"),
    ),
    _gate(
        "passes",
        "two",
        "two: the choice is made in a pass of its own; one: the layers that are looked at are shared",
        choices=("one", "two"),
    ),
    _gate(
        "routing_layers",
        "auto",
        "layers that are looked at: all, first:3, depth:0.75, 0,2-4, a name, or the paper's",
    ),
    _gate(
        "routing_sites",
        "all",
        "inputs of a layer that are looked at; paper: attention_out of T5, else mlp",
        choices=("all", *POSITIONS, "paper"),
    ),
    _gate(
        "pooling",
        "auto",
        "of an input's tokens; auto: tokens for images, else mean; paper: cls for images, else mean",
        choices=("auto", *(p.value for p in Pooling), "paper"),
    ),
    _gate(
        "score",
        "auto",
        "what tells tasks apart at a site; auto: leading for adapters, else residual",
        choices=("auto", *(s.value for s in Score)),
    ),
    _gate(
        "head_evidence",
        "auto",
        "auto: what the tasks' heads say of the first pass counts too, where there are heads of classes",
        choices=("auto", "none"),
    ),
    _gate("norm", "l2", "of residuals", choices=("l2", "l1", "mahalanobis")),
    _gate("select", "top1", "which tasks run", choices=("top1", "threshold", "weighted")),
    _gate("threshold", 0.2, "least share η of a task that runs", low=0, high=1),
    _gate("max_tasks", 3, "most tasks K that run at once; weighted knows no such limit", low=1),
    _gate("temperature", 1.0, "temperature τ of the shares", low=1e-6),
    _gate(
        "heads",
        "router",
        "which head answers: the best task's, or that of the largest maximum or mean logit",
        choices=("router", "max", "avg"),
    ),
    _gate(
        "batch", "sample", "one decision for each input, or for all of a batch", choices=("sample", "batch")
    ),
    _gate(
        "group_mean",
        "scores",
        "what is averaged over the inputs of one decision: their scores, or residuals before z-scores",
        choices=("scores", "residuals"),
    ),
    Option(
        "form",
        str,
        "any",
        "inputs that the task takes: pairs of texts, single ones, or any",
        scope="model",
        choices=("any", "single", "pair"),
        single=True,
    ),
)

METHODS = (
    Method(
        name="mass",
        title="MASS (adaptive subspace selection)",
        equation="θ = θ_0 + polar([U_t]) diag([s_t]) polar([V_t]) over the tasks t that an input selects",
        source="Crisostomi et al. 2026, arXiv 2504.05342",
        use="Many tasks served as one model when nobody says which task an input belongs to.",
        plan=_plan,
        matrix=_matrix,
        settings=_settings,
        kept=_kept,
        options=OPTIONS,
        differs="the default router averages over all layers and runs one task; preset: paper is the paper's",
    ),
)
