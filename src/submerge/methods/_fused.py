"""Rules for matrices, applied to each map of a fused matrix by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import wraps

from submerge.algebra import Update
from submerge.methods._base import MatrixFold, Merged, Option, TensorSpec, Values

__all__ = ["FUSED", "by_map"]

FUSED = Option(
    "fused", str, "split", "whole: a fused qkv_proj as one matrix, not map by map", choices=("split", "whole")
)
"""How a matrix of several maps is merged: map by map where its layout is known, or as one matrix."""


def by_map(fold: MatrixFold) -> MatrixFold:
    """Return the rule that merges each map of a fused matrix (`spec.fused`) as `fold` merges a matrix.

    So a fused layout has the result of the same model in a split one. Figures are those of each map, under
    `maps`; a warning about a map is one about the matrix. Nothing is kept for a gate.
    """

    @wraps(fold)
    def merged(updates: Sequence[Update], spec: TensorSpec, values: Values) -> Merged:
        layout = spec.fused
        if layout is None:
            return fold(updates, spec, values)
        split = [layout.split(update) for update in updates]
        parts = [
            fold(own, replace(spec, name=f"{spec.name} ({name})", shape=own[0].shape, fused=None), values)
            for name, *own in zip(layout.maps, *split, strict=True)
        ]
        figures = {name: dict(part.figures) for name, part in zip(layout.maps, parts, strict=True)}
        warnings = [own.pop("warning") for own in figures.values() if "warning" in own]
        told = {"warning": warnings[0]} if warnings else {}
        return Merged(layout.join([part.update for part in parts]), {"maps": figures, **told})

    return merged
