"""The options of MASS, and what they mean for one tensor and for the gate."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from submerge.algebra import RankRule
from submerge.deferred import torch
from submerge.errors import Problem, RequestError
from submerge.methods._base import BankBound, Option, TensorSpec, Values
from submerge.methods._layer_rule import LayerRule
from submerge.methods._matrix import refused
from submerge.methods._routing_settings import POSITIONS, Pooling, Score

__all__ = ["OPTIONS", "PRESETS", "bank_bound", "bank_dtype", "bank_rank", "gate_settings", "refuse"]


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


def _of_gate(name: str, default: str | float | int, help: str, **more: Any) -> Option:
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
    _of_gate("preset", "default", "what the options below are by default", choices=tuple(PRESETS)),
    _of_gate("aggregate", "tsv_m", "how the chosen tasks are merged", choices=("tsv_m", "iso_c", "sum")),
    _of_gate(
        "first_pass",
        "auto",
        "the model that routes; auto: the base, or with one pass the merge, whose blocks are shared",
        choices=("auto", "merged", "base"),
    ),
    _of_gate(
        "passes",
        "two",
        "two: the choice is made in a pass of its own; one: the layers up to the last site are shared",
        choices=("one", "two"),
    ),
    _of_gate(
        "routing_layers",
        "auto",
        "layers with sites: all, first:3, depth:0.75, 0,2-4, a name, or the paper's",
    ),
    _of_gate(
        "routing_sites",
        "all",
        "inputs of a layer that are sites; paper: attention_out of T5, else mlp",
        choices=("all", *POSITIONS, "paper"),
    ),
    _of_gate(
        "pooling",
        "auto",
        "of an input's tokens; auto: tokens for images and null_space, else mean; "
        "paper: cls for images, else mean",
        choices=("auto", *(p.value for p in Pooling), "paper"),
    ),
    _of_gate(
        "score",
        "auto",
        "the score of a task at a site; auto: leading (the trailing energy) for adapters, else residual",
        choices=("auto", *(s.value for s in Score)),
    ),
    _of_gate(
        "reference",
        "auto",
        "what scores count from; noise: those of random inputs; "
        "auto: noise for a decoder's adapters (score: leading), else none",
        choices=("auto", "noise", "none"),
    ),
    _of_gate(
        "head_evidence",
        "auto",
        "auto: the log-evidence of the tasks' heads counts too, where there are heads of classes",
        choices=("auto", "none"),
    ),
    _of_gate(
        "calibration",
        "auto",
        "auto: what `submerge calibrate` found of the tasks' inputs counts too, where the folder has it",
        choices=("auto", "none"),
    ),
    _of_gate("norm", "l2", "of residuals", choices=("l2", "l1", "mahalanobis")),
    _of_gate("select", "top1", "which tasks run", choices=("top1", "threshold", "weighted")),
    _of_gate("threshold", 0.2, "least share η of a task that runs", low=0, high=1),
    _of_gate("max_tasks", 3, "most tasks K that run at once; weighted has no such limit", low=1),
    _of_gate("temperature", 1.0, "temperature τ of the shares", low=1e-6),
    _of_gate(
        "heads",
        "router",
        "which head answers: the best task's, or that of the largest maximum or mean logit",
        choices=("router", "max", "avg"),
    ),
    _of_gate(
        "batch", "sample", "one decision for each input, or for all of a batch", choices=("sample", "batch")
    ),
    _of_gate(
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


def gate_settings(
    given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], count: int
) -> dict[str, Any]:
    """Return the gate's settings: the recipe's, else the preset's, else the defaults."""
    settings = {o.name: o.default for o in OPTIONS if o.single}
    settings |= {**PRESETS[given.get("preset", "default")], **given}
    problems = _crowded(shapes, count)
    try:
        problems += LayerRule.parse(str(settings["routing_layers"])).problems(shapes)
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems)
    return settings


def _crowded(shapes: Mapping[str, tuple[int, ...]], count: int) -> list[Problem]:
    """Return that half of the layers' weights have fewer directions than there are tasks, if it is so."""
    from submerge.names import layer_of  # here: a list of the methods needs none of it

    sides = [min(shape) for name, shape in shapes.items() if len(shape) == 2 and layer_of(name) is not None]
    if not sides or count <= median(sides):
        return []
    what = f"{count} tasks do not fit into weights of rank {median(sides):g}: none would keep a direction"
    return [Problem(what, "models", "serve fewer tasks in one model")]


def refuse(spec: TensorSpec, o: Values) -> None:
    """Raise `RequestError` where `rank` and `compression` name no rank."""
    _compression(spec, o)


def bank_dtype(o: Values) -> torch.dtype:
    """Return the type of the bank's tensors."""
    dtype: torch.dtype = getattr(torch, o["bank_dtype"])
    return dtype


def bank_rank(spec: TensorSpec, o: Values) -> RankRule | None:
    """Return how many triplets the bank holds of each update; None where it holds dense ones, or nothing."""
    rule = _compression(spec, o)
    if len(spec.shape) != 2 or min(spec.shape) < 2 or (spec.table and o["others"] == "base"):
        return None
    return rule if rule.kind != "int" or rule.value >= 1 else None


def _compression(spec: TensorSpec, o: Values) -> RankRule:
    shorter = min(spec.shape, default=0)
    if o["rank"] != "auto" and o["compression"] != "auto":
        raise refused(spec, "both rank and compression are given", "keep one of them")
    if o["rank"] != "auto":
        return RankRule("int", min(o["rank"], shorter))
    name, _, number = o["compression"].partition(":")
    if name == "auto" and not number:
        return RankRule("int", shorter // spec.count)
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if name not in ("energy", "ratio") or not 0 < share <= 1:
        hint = "write energy:0.9 or ratio:0.125, with a share in (0, 1]"
        raise refused(spec, f"compression is {o['compression']!r}", hint)
    # 1e-9, for 0.29 · 100 is a little less than 29
    return RankRule("energy", share) if name == "energy" else RankRule("int", int(share * shorter + 1e-9))


def bank_bound(spec: TensorSpec, o: Values, rank: int) -> BankBound:
    """Return the most that the bank holds of an update of a rank (0: not known)."""
    rule, size = bank_rank(spec, o), bank_dtype(o).itemsize
    if rule is None:
        return BankBound(0 if o["others"] == "base" else size * spec.numel)
    most = min(spec.shape) if rule.kind == "energy" else int(rule.value)
    most = min(most, rank or most)
    shared = size * spec.numel if spec.table and o["fixed"] != "base" else 0
    return BankBound(most * (size * sum(spec.shape) + 4), most, shared)  # values are float32
