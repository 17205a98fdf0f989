"""Pictures of null-space ratios: data × adapter over all modules and by layer, and ω(λ)."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import torch

from submerge.calibrate import NullSpaceCurve, NullSpaceMatrix
from submerge.report._figure import figure_at, heat_map
from submerge.report._rows import Row, layer_rows, shortened, shortened_front

__all__ = ["draw_curve", "draw_null_space", "panel_grid", "put_curves", "put_layers", "put_matrix"]

UNIT = 1000
"""Ratios lie in a narrow band below 1, so that differences are given in thousandths."""
COLOURS = "RdBu"  # red, below the level: the adapter sees more of these inputs than of noise
PANEL = 1.7
"""The width of a layer's panel in inches."""
LEGEND_ROWS = 12


def draw_null_space(matrix: NullSpaceMatrix, path: str | Path) -> None:
    """Draw how much of each data set each adapter does not see, over all modules and by layer.

    What is drawn is ω − √(1 − r/n), the ratio beside that of inputs without any structure, in thousandths:
    below 0 the adapter sees more of the inputs than of noise. The smallest value of each data set has a
    frame, as `matrix.nearest` has it.

    Args:
        path: where the picture is written, `.png` or `.svg`.

    Raises:
        RequestError: the path has another ending, or matplotlib is missing.

    Examples:
        >>> import torch
        >>> from submerge import NullSpaceMatrix
        >>> from submerge.report import draw_null_space
        >>> values = torch.tensor([[[0.97, 0.99], [0.98, 0.96]]])
        >>> level = torch.full((1, 2), 0.99)
        >>> found = NullSpaceMatrix(("a", "b"), ("A", "B"), ("layers.3.q",), values, level, (64, 64))
        >>> draw_null_space(found, "ratios.svg")
    """
    width, height = 0.45 * len(matrix.adapters) + 4.5, 0.35 * len(matrix.data) + 2.5
    panels = layer_rows(matrix.modules)
    columns, below = panel_grid(panels, max(width, 7), len(matrix.data))
    with figure_at(path, max(width, 7), height + below) as figure:
        if not below:
            put_matrix(figure.subplots(), matrix)
            return
        top, bottom = figure.subfigures(2, 1, height_ratios=(height, below))
        put_matrix(top.subplots(), matrix)
        put_layers(bottom, matrix, panels, columns)


def draw_curve(curve: NullSpaceCurve, path: str | Path) -> None:
    """Draw ω(λ) − ω(0) of each adapter alone on its own inputs; curves that do not fall are dashed.

    Args:
        path: where the picture is written, `.png` or `.svg`.

    Raises:
        RequestError: the path has another ending, or matplotlib is missing.

    Examples:
        >>> import torch
        >>> from submerge import NullSpaceCurve
        >>> from submerge.report import draw_curve
        >>> values = torch.tensor([[0.9747, 0.9751, 0.9756], [0.98, 0.97, 0.96]])
        >>> draw_curve(NullSpaceCurve(("a", "b"), (0.0, 0.5, 1.0), ("layers.3.q",), values), "curve.png")
    """
    with figure_at(path, 8, 4.5) as figure:
        put_curves(figure.subplots(), curve)


def put_matrix(axes: Any, matrix: NullSpaceMatrix) -> None:
    """Draw the mean over the modules, with a frame around the nearest adapter of each data set."""
    values = _relative(matrix)
    adapters, nearest = matrix.adapters, values.nan_to_num(nan=torch.inf).argmin(1).tolist()
    limit = _limit(values)
    label = "ω − √(1 − r/n), in thousandths"
    names = [shortened(name) for name in matrix.data]
    heat_map(axes, values, names, adapters, colours=COLOURS, centre=0, limit=limit, digits=1, label=label)
    for y, x in enumerate(nearest):
        axes.add_patch(_frame(x, y))
    axes.set_ylabel("inputs of")
    axes.set_xlabel("adapter")
    axes.set_title(_title(matrix, nearest), fontsize=10)


def _title(matrix: NullSpaceMatrix, nearest: list[int]) -> str:
    """Return what the frames say: where data sets are the adapters' own, how many are nearest to theirs."""
    if not set(matrix.data) <= set(matrix.adapters):
        return "What adapters do not see of each data set (framed: least)"
    own = sum(matrix.adapters[k] == name for name, k in zip(matrix.data, nearest, strict=True))
    return f"{own} of {len(nearest)} data sets are nearest to their own adapter (framed)"


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.5)


def panel_grid(panels: list[Row], width: float, rows: int) -> tuple[int, float]:
    """Return how many layers stand side by side, and the height of all; 0 where they are not several."""
    columns = min(len(panels), int(width / PANEL))
    if len(panels) < 2:
        return columns, 0
    return columns, ceil(len(panels) / columns) * min(PANEL, 0.12 * rows + 0.8) + 0.6


def put_layers(figure: Any, matrix: NullSpaceMatrix, panels: list[Row], columns: int) -> None:
    """Draw a small matrix for each layer, on one scale of colours, without names."""
    values = [_relative(matrix, places) for _, places in panels]
    limit = _limit(torch.stack(values))
    grid = figure.subplots(ceil(len(panels) / columns), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (label, _), cells in zip(grid.flat, panels, values, strict=False):
        axes.set_axis_on()
        axes.set_facecolor("#dddddd")
        ends = {"vmin": -limit, "vmax": limit}
        image = axes.imshow(cells.numpy(), aspect="auto", cmap=COLOURS, **ends)
        axes.set_xticks([])
        axes.set_yticks([])
        stack, _, number = label.rpartition("layer ")
        axes.set_title(f"{shortened_front(stack.strip())}\nlayer {number}".strip(), fontsize=7)
    figure.colorbar(image, ax=grid).set_label("thousandths", fontsize=8)
    figure.suptitle(
        "The ratios by layer: inputs of (down) × adapter (across), in the order above", fontsize=10
    )


def put_curves(axes: Any, curve: NullSpaceCurve) -> None:
    """Draw the change of ω from λ = 0, with the adapters' names beside."""
    colours = _line_colours(len(curve.adapters))
    for name, row, falls, colour in zip(curve.adapters, curve.values, curve.falls, colours, strict=True):
        change = (UNIT * (row - row[0])).tolist()
        style = {"linestyle": "-" if falls else "--", "marker": "o" if falls else "x", "color": colour}
        label = shortened(name) + ("" if falls else " (does not fall)")
        axes.plot(curve.scales, change, label=label, markersize=4, linewidth=1.2, **style)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xlabel("λ of the adapter alone, on its own inputs")
    axes.set_ylabel("ω(λ) − ω(0), in thousandths")
    axes.set_title(f"ω falls with λ for {sum(curve.falls)} of {len(curve.falls)} adapters", fontsize=10)
    columns = ceil(len(curve.adapters) / LEGEND_ROWS)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, ncols=columns, frameon=False)


def _line_colours(count: int) -> list[Any]:
    """Return a colour for each of so many curves; they repeat after 20."""
    from matplotlib import colormaps

    table = colormaps["tab10" if count <= 10 else "tab20"]
    return [table(number % table.N) for number in range(count)]


def _relative(matrix: NullSpaceMatrix, places: list[int] | None = None) -> torch.Tensor:
    """Return ω − √(1 − r/n) [J, K] in thousandths, the mean over modules that have it, or over some."""
    apart = UNIT * (matrix.values - matrix.isotropic.unsqueeze(1))
    return (apart if places is None else apart[places]).nanmean(0)


def _limit(values: torch.Tensor) -> float:
    """Return where colours end: the largest value, or 1 where there is none."""
    return float(values.nan_to_num().abs().max()) or 1.0
