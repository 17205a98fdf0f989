"""A picture of how updates overlap: angles by layer and kind of module, and kept energy by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from submerge.engine import Inspection, MatrixOverlap
from submerge.report._figure import figure_at, heat_map
from submerge.report._inspection_summary import kind_groups, layer_groups, summary
from submerge.report._rows import shortened_front

__all__ = ["draw_inspection"]

GRID = np.linspace(0, 1, 97)
"""Where curves are drawn: ranks as shares of the full one, so that matrices of several sizes have a mean."""


def draw_inspection(inspection: Inspection, path: str | Path) -> None:
    """Draw how the updates of models overlap, by layer and kind of module, and how much of them is shared.

    There are two maps of the mean cosine of the principal angles over all pairs of models, between column
    spaces and between row spaces: 1 where updates change the same directions, 0 where theirs are orthogonal.
    Grey are matrices that at most one model changes. Curves show what share of Σ‖Δ_t‖² the subspace of SSAM
    keeps with k directions, as a mean over all matrices and over those of a kind.

    Args:
        inspection: as `inspect_updates` returns it.
        path: where the picture is written, `.png` or `.svg`.

    Raises:
        RequestError: the path has another ending, or matplotlib is missing.

    Examples:
        >>> import submerge
        >>> from submerge.report import draw_inspection
        >>> draw_inspection(submerge.inspect_updates("recipe.yaml", rank=4), "overlap.png")
    """
    layers, kinds = layer_groups(inspection), kind_groups(inspection)
    width = max(12.0, 2 * (0.55 * len(kinds) + 3))
    above = max(3.0, 0.2 * len(layers) + 2)
    with figure_at(path, width, above + 4) as figure:
        maps, curves = figure.subfigures(2, 1, height_ratios=[above, 4])
        left, right = maps.subplots(1, 2)
        columns, rows = _mean_cosines(list(layers.values()), list(kinds.values()))
        _put_map(left, columns, list(layers), list(kinds), "column spaces (outputs)")
        _put_map(right, rows, list(layers), list(kinds), "row spaces (inputs)")
        _put_curves(curves.subplots(), inspection)


def _mean_cosines(
    layers: Sequence[Sequence[MatrixOverlap]], kinds: Sequence[Sequence[MatrixOverlap]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means for column and for row spaces, [layers, kinds] each; NaN where there is no pair."""
    shape = (2, len(layers), len(kinds))
    values = torch.full(shape, math.nan, dtype=torch.float64)
    for y, of_layer in enumerate(layers):
        names = {matrix.name for matrix in of_layer}
        for x, of_kind in enumerate(kinds):
            cell = summary("", [matrix for matrix in of_kind if matrix.name in names])
            if cell.columns is not None and cell.rows is not None:
                values[:, y, x] = torch.tensor([cell.columns, cell.rows])
    return values[0], values[1]


def _put_map(axes: Any, values: torch.Tensor, layers: list[str], kinds: list[str], what: str) -> None:
    limit = float(values.nan_to_num().max()) or 1.0
    names = [shortened_front(kind) for kind in kinds]
    look: dict[str, Any] = {"colours": "Blues", "centre": 0, "limit": limit, "digits": 2, "one_sided": True}
    heat_map(axes, values, layers, names, label="mean cosine of the principal angles", **look)
    axes.set_title(f"Overlap of {what}", fontsize=10)


def _put_curves(axes: Any, inspection: Inspection) -> None:
    """Draw the kept energy against the rank, with marks where all matrices have the same half and max."""
    for kind, matrices in kind_groups(inspection).items():
        axes.plot(GRID, _mean_curve(matrices), linewidth=1, label=shortened_front(kind))
    mean = _mean_curve(inspection.matrices)
    axes.plot(GRID, mean, color="black", linewidth=2, label="all matrices")
    for word in ("half", "max"):
        shares = {getattr(matrix, word) / matrix.full for matrix in inspection.matrices}
        if len(shares) == 1:
            axes.axvline(share := shares.pop(), color="#999999", linewidth=0.8, linestyle="--")
            axes.text(share, 0.01, f" {word}", fontsize=7, color="#666666")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("shared directions k, as a share of the sum of the ranks")
    axes.set_ylabel("kept share of Σ‖Δ_t‖²")
    axes.set_title(
        f"What k shared directions keep of the updates of {len(inspection.models)} models", fontsize=10
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, frameon=False)


def _mean_curve(matrices: Sequence[MatrixOverlap]) -> Any:
    curves = [np.interp(GRID, [0, *(k / m.full for k in m.kept.ranks)], [0, *m.kept.both]) for m in matrices]
    return np.mean(curves, axis=0)
