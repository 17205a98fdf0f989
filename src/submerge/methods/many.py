"""LPM of MAny, and RegMean: least squares over the tasks' own inputs.

θ = θ_0 + λ (Σ_t Δ_t C_t) (Σ_t C_t)⁻¹, with the second moments C_t = X_tᵀ X_t of a linear map's inputs on
task t. The merged map answers each task's inputs as nearly like that task's own map as one matrix can; see
`submerge.algebra.merge_least_squares` (arXiv 2604.14016, §4.3; RegMean: arXiv 2212.09849, eq. 2).

Biases, embeddings and the gains of norms are linear in what they see as well, and have the same merge
(`submerge.algebra.merge_layer`). What has no moments is the mean of the updates, λ Σ w_t Δ_t / Σ w_t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from submerge.algebra import (
    FactorMoment,
    LayerParameter,
    LpmOptions,
    Moment,
    Update,
    Zero,
    combine,
    merge_layer,
)
from submerge.errors import WorkError
from submerge.methods._base import FoldPlan, Merged, Method, Option, TensorSpec, Values
from submerge.methods._matrix import refused
from submerge.store import StoredMoments

__all__ = ["METHODS"]

WEIGHT = Option("weight", float, 1.0, "factor on each model's moments", scope="model", low=0)
SCALE = Option("scale", float, 1.0, "factor λ on the merged update", tune=True)
NORMALIZE = Option(
    "normalize",
    str,
    "per_token",
    "whether moments are divided by their number of tokens",
    choices=("per_token", "sum"),
)
MISSING = Option(
    "missing", str, "zero", "what a model without an update of a map has there", choices=("zero", "skip")
)
STATISTICS = Option(
    "statistics",
    str,
    "full",
    "what is collected of the inputs",
    choices=("full", "block", "diag", "identity"),
    single=True,
)
COLLECTING = (
    Option("batch_size", int, 16, "inputs in a pass over the data", low=1, single=True),
    Option("max_length", int, 512, "tokens to which texts are cut", low=1, single=True),
)

ILL_CONDITIONED = (
    "the sums of moments are in float32, and ill-conditioned for that: in directions that hardly any input "
    "has, updates are what rounding makes of them — set ridge to 1e-3, or give more data"
)


def _offdiag(default: float) -> Option:
    return Option("offdiag", float, default, "factor on what is beside the diagonal", low=0, high=1)


def _ridge(default: float) -> Option:
    return Option("ridge", float, default, "ridge of each task, as a share of its mean eigenvalue", low=0)


MANY = (
    WEIGHT,
    SCALE,
    _ridge(1e-3),
    Option("energy", float, 1.0, "share of each trace that is kept", low=1e-6, high=1),
    Option("forget", float, 1.0, "factor on all earlier tasks, for each later one", low=1e-6, high=1),
    _offdiag(1.0),
    NORMALIZE,
    MISSING,
    STATISTICS,
    *COLLECTING,
)
REGMEAN = (WEIGHT, SCALE, _ridge(0.0), _offdiag(0.9), NORMALIZE, MISSING, STATISTICS, *COLLECTING)


def _refuse(spec: TensorSpec, o: Values) -> None:
    if not math.fsum(o["weight"]):
        raise refused(spec, "all weights are 0", "give one model a weight")
    if o.get("energy", 1.0) < 1 and o["statistics"] != "full":
        what = f"energy is {o['energy']:g}, and {o['statistics']} statistics have no eigenpairs"
        raise refused(spec, what, "collect full ones, or leave energy at 1")


def _plan(spec: TensorSpec, o: Values) -> FoldPlan:
    yield from ()  # no reduction is needed
    total = math.fsum(o["weight"])
    factors = [o["scale"] * w / total for w in o["weight"]]
    return lambda chunk: combine(chunk.values, factors)


def _matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
    if all(isinstance(update, Zero) for update in updates):
        return Merged(Zero(updates[0].shape))
    moments = spec.moments or [FactorMoment.identity(updates[0].shape[1], 1)] * len(updates)
    weighted = _WeightedMoments(moments, o["weight"])
    names = ("ridge", "scale", "energy", "forget", "offdiag", "normalize", "missing")
    options = LpmOptions(**{name: o[name] for name in names if name in o})
    figures: dict[str, Any] = {}

    def note(phi: Moment) -> None:
        if _rounded(spec) and options.divides_by_rounding(phi):
            figures["warning"] = ILL_CONDITIONED

    layer = spec.layer or LayerParameter()
    try:
        return Merged(merge_layer(layer, updates, spec.partner, weighted, options, note), figures)
    except ValueError as error:  # the data of all models that have a say there does not reach it
        raise WorkError(f"tensor {spec.name}: {error} — give other data, or missing: zero") from error


def _rounded(spec: TensorSpec) -> bool:
    """Return whether moments were summed and stored in float32, as those that a merge collects are."""
    return isinstance(spec.moments, StoredMoments) and spec.moments.rounded


@dataclass(frozen=True)
class _WeightedMoments:
    """Each model's moment with its weight as a factor, read whenever it is asked for."""

    moments: Sequence[Moment]
    weights: Sequence[float]

    def __iter__(self) -> Iterator[Moment]:
        return (moment.scaled(w) for moment, w in zip(self.moments, self.weights, strict=True))


def _method(
    name: str,
    title: str,
    source: str,
    use: str,
    options: tuple[Option, ...],
    differs: str,
    *,
    mixes_projectors: bool = False,
) -> Method:
    return Method(
        name=name,
        title=title,
        equation="θ = θ_0 + λ (Σ Δ_t C_t) (Σ C_t)⁻¹, with the second moments C_t of each task's inputs",
        source=source,
        use=use,
        plan=_plan,
        matrix=_matrix,
        options=options,
        moments=True,
        mixes_projectors=mixes_projectors,
        refuse=_refuse,
        differs=differs,
    )


METHODS = (
    _method(
        "many",
        "LPM (MAny)",
        "arXiv 2604.14016",
        "Adapters of unlike tasks, with a few hundred unlabelled inputs of each.",
        MANY,
        "a ridge of each task, λ = 1 and all of C_t; for the paper's constants, scale: 3 and energy: 0.999",
        mixes_projectors=True,
    ),
    _method(
        "regmean",
        "RegMean",
        "arXiv 2212.09849",
        "Full fine-tunes of unlike tasks, with a few hundred unlabelled inputs of each.",
        REGMEAN,
        "moments are divided by their number of tokens; normalize: sum takes them as they are",
    ),
)
