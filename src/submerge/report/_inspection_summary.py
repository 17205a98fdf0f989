"""An inspection in few figures: means by layer, by kind of module, by model, and by pair of models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from submerge.engine import Inspection, MatrixOverlap
from submerge.names import layer_of
from submerge.report._rows import layer_rows

__all__ = [
    "OverlapSummary",
    "by_kind",
    "by_layer",
    "by_model",
    "by_pair",
    "kind_groups",
    "layer_groups",
    "summary",
]

OUTSIDE = "outside of layers"

Groups = Mapping[str, Sequence[MatrixOverlap]]


@dataclass(frozen=True)
class OverlapSummary:
    """Means over several matrices; None where there is nothing to take a mean of.

    Attributes:
        label: what it is about.
        count: of the matrices.
        columns: the mean cosine of the principal angles between column spaces.
        rows: the same between row spaces.
        cosine: of the updates.
        norm: the root of Σ‖Δ_t‖² over models and matrices.
        stable_rank: of the updates that are not zero.
        half: the energy that the subspace of half of the largest rank keeps.
        max: that of the largest rank.
        full: that of the sum of the ranks.
    """

    label: str
    count: int
    columns: float | None
    rows: float | None
    cosine: float | None
    norm: float
    stable_rank: float | None
    half: float | None
    max: float | None
    full: float | None


def by_layer(inspection: Inspection) -> list[OverlapSummary]:
    """Return a summary for each layer, in order, and one for matrices outside of all layers."""
    return [summary(label, matrices) for label, matrices in layer_groups(inspection).items()]


def by_kind(inspection: Inspection) -> list[OverlapSummary]:
    """Return a summary for each kind of module, such as `mlp.up_proj`, over the layers."""
    return [summary(label, matrices) for label, matrices in kind_groups(inspection).items()]


def by_model(inspection: Inspection) -> list[OverlapSummary]:
    """Return a summary for each model: how it overlaps with the others, and how much of it is kept."""
    return [summary(label, inspection.matrices, (t,)) for t, label in enumerate(inspection.models)]


def by_pair(inspection: Inspection) -> list[OverlapSummary]:
    """Return a summary for each pair of models."""
    return [
        summary(f"{a} – {b}", inspection.matrices, (i, j))
        for (i, a), (j, b) in combinations(enumerate(inspection.models), 2)
    ]


def layer_groups(inspection: Inspection) -> Groups:
    """Return the matrices by layer."""
    matrices = inspection.matrices
    rows = layer_rows([matrix.name for matrix in matrices])
    groups = {label: [matrices[place] for place in places] for label, places in rows}
    outside = [matrix for matrix in matrices if layer_of(matrix.name) is None]
    return groups | ({OUTSIDE: outside} if outside else {})


def kind_groups(inspection: Inspection) -> Groups:
    """Return the matrices by what their modules are called within a layer."""
    groups: dict[str, list[MatrixOverlap]] = {}
    for matrix in inspection.matrices:
        groups.setdefault(_kind(matrix.name), []).append(matrix)
    return groups


def _kind(name: str) -> str:
    layer = layer_of(name)
    inner = name if layer is None else name.removeprefix(f"{layer[0]}.{layer[1]}.")
    return inner.removesuffix(".weight")


def summary(label: str, matrices: Iterable[MatrixOverlap], models: Sequence[int] = ()) -> OverlapSummary:
    """Return the means over matrices that the models change, of the pairs that all of them are in.

    So it is of all pairs without models, of the pairs with a model for one, and of one pair for two.
    """
    changed = [matrix for matrix in matrices if all(matrix.ranks[t] for t in models)]
    pairs = [pair for m in changed for pair in m.pairs if {pair.first, pair.second}.issuperset(models)]
    stable = [s for m in changed for t, s in enumerate(m.stable_ranks) if s and (not models or t in models)]
    norms = [norm for m in changed for t, norm in enumerate(m.norms) if not models or t in models]
    return OverlapSummary(
        label,
        len(changed),
        columns=_mean([pair.columns for pair in pairs]),
        rows=_mean([pair.rows for pair in pairs]),
        cosine=_mean([pair.cosine for pair in pairs]),
        norm=math.hypot(*norms),
        stable_rank=_mean(stable),
        half=_mean([_kept(m, m.half, models) for m in changed]),
        max=_mean([_kept(m, m.max, models) for m in changed]),
        full=_mean([_kept(m, m.full, models) for m in changed]),
    )


def _kept(matrix: MatrixOverlap, rank: int, models: Sequence[int]) -> float:
    """Return the share that is kept of all updates together, or the mean of that of each of some models."""
    kept = matrix.kept
    return fmean(kept.at(rank, t) for t in models) if models else kept.at(rank)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
