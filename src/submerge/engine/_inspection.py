"""How the updates of several models overlap, as figures for each weight matrix and each pair of models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from submerge.algebra import KeptEnergy

__all__ = ["Inspection", "MatrixOverlap", "PairOverlap"]


@dataclass(frozen=True)
class PairOverlap:
    """How the updates of two models of one matrix lie to one another.

    Attributes:
        first: the place of one model among the inspection's.
        second: that of the other.
        cosine: ⟨Δ_a, Δ_b⟩ / (‖Δ_a‖ ‖Δ_b‖), in [−1, 1].
        column_angles: the principal angles between the column spaces (of the outputs), ascending, in radians.
        row_angles: those between the row spaces (of the inputs).
    """

    first: int
    second: int
    cosine: float
    column_angles: tuple[float, ...]
    row_angles: tuple[float, ...]

    @property
    def columns(self) -> float:
        """The mean cosine of the angles between the column spaces: 1 where one holds the other."""
        return fmean(map(math.cos, self.column_angles))

    @property
    def rows(self) -> float:
        """The mean cosine of the angles between the row spaces."""
        return fmean(map(math.cos, self.row_angles))


@dataclass(frozen=True)
class MatrixOverlap:
    """How the updates of all models of one weight matrix overlap; sequences are in the models' order.

    Attributes:
        name: of the tensor.
        shape: [m, n], outputs and inputs.
        ranks: for each model the singular directions that are compared; 0 for a zero update.
        norms: ‖Δ_t‖.
        stable_ranks: ‖Δ_t‖² / σ_1², from 1 to the rank; 0 for a zero update.
        pairs: of the models that change the matrix.
        kept: the energy in the subspace that all share.
        half: half of the largest of the ranks, one of `kept.ranks`.
        max: the largest of the ranks, SSAM's default.
        full: the sum of the ranks, or the larger side of the matrix where that is less.
    """

    name: str
    shape: tuple[int, int]
    ranks: tuple[int, ...]
    norms: tuple[float, ...]
    stable_ranks: tuple[float, ...]
    pairs: tuple[PairOverlap, ...]
    kept: KeptEnergy
    half: int
    max: int
    full: int


@dataclass(frozen=True)
class Inspection:
    """How the updates of a recipe's models overlap, as `inspect_updates` returns it.

    Attributes:
        models: what the models are called.
        matrices: the weight matrices that a model changes, by layers.
        untouched: the names of those that none changes.
        rank: the most singular directions of an update that were compared; None for the default.
        warnings: what of the adapters deserves a look, a sentence each: parts of them that are left out, and
            bases that they were not trained on.

    Examples:
        >>> import submerge
        >>> inspection = submerge.inspect_updates("recipe.yaml", rank=8)
        >>> matrix = inspection.matrices[0]
        >>> matrix.name, matrix.half, matrix.max, matrix.full
        ('model.layers.0.mlp.down_proj.weight', 4, 8, 24)
        >>> len(matrix.pairs), len(matrix.pairs[0].column_angles)
        (3, 8)
        >>> matrix.kept.at(matrix.max) < matrix.kept.at(matrix.full)
        True
        >>> submerge.Inspection.from_dict(inspection.to_dict()) == inspection
        True
    """

    models: tuple[str, ...]
    matrices: tuple[MatrixOverlap, ...]
    untouched: tuple[str, ...] = ()
    rank: int | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Inspection:
        """Return the inspection that `to_dict` or its JSON holds."""
        return cls(
            models=tuple(content["models"]),
            matrices=tuple(map(_matrix, content["matrices"])),
            untouched=tuple(content["untouched"]),
            rank=content["rank"],
            warnings=tuple(content.get("warnings", ())),
        )


def _matrix(content: Mapping[str, Any]) -> MatrixOverlap:
    pairs = tuple(PairOverlap(**_with_tuples(pair)) for pair in content["pairs"])
    kept = KeptEnergy(**_with_tuples(content["kept"]))
    return MatrixOverlap(**_with_tuples(content) | {"pairs": pairs, "kept": kept})


def _with_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping whose lists, also those within lists, are tuples."""
    return {key: _as_tuple(value) for key, value in content.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value
