"""A picture of a calibration: its last ratios, ω(λ), the loss, and the coefficients by depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from submerge.calibrate import Calibration, NullSpaceCurve, NullSpaceMatrix
from submerge.report._figure import figure_at, heat_map
from submerge.report._null_space_picture import panel_grid, put_curves, put_layers, put_matrix
from submerge.report._rows import layer_rows, module_rows, shortened

__all__ = ["draw_calibration"]

MOST_ROWS = 32
"""Modules that have rows of their own; of more, those of a layer are averaged."""


def draw_calibration(calibration: Calibration | Mapping[str, Any], path: str | Path) -> None:
    """Draw what coefficients were learned, and what they were learned from.

    There are the ratios of the merged model beside the level of inputs without any structure, over all
    modules and by layer, ω(λ) of each adapter alone, with curves that do not fall dashed, the loss over the
    steps, and the coefficients of each adapter by depth about their initial value. Where the coefficients of
    a module could not be reached by a gradient, its name is grey; adapters whose coefficients the guard kept
    are marked.

    Args:
        calibration: as `learn_coefficients` returns it, or what its JSON file holds. The file has one level
            for each adapter, a mean over modules, which serves as that of every layer.
        path: where the picture is written, `.png` or `.svg`.

    Raises:
        RequestError: the path has another ending, or matplotlib is missing.

    Examples:
        >>> import torch
        >>> import submerge
        >>> from submerge.report import draw_calibration
        >>> report = submerge.extract_lora("chat", "chat-lora", base="base", rank=4)
        >>> tokens = [{"input_ids": torch.arange(32).view(2, 16)}]
        >>> draw_calibration(submerge.learn_coefficients("base", ["chat-lora"], [tokens], steps=0), "a.png")
    """
    if isinstance(calibration, Calibration):
        facts, matrix, curve = calibration.to_dict(), calibration.matrix, calibration.curve
    else:
        facts, matrix, curve = dict(calibration), _matrix(calibration), _curve(calibration)
    rows = module_rows(list(facts["coefficients"]), MOST_ROWS)
    count = len(matrix.adapters)
    width = max(12.0, 2 * (0.4 * count + 4))
    above = max(0.35 * count, 0.2 * len(rows)) + 2.2
    panels = layer_rows(matrix.modules)
    columns, below = panel_grid(panels, width, count)
    with figure_at(path, width, above + 4 + below) as figure:
        parts = figure.subfigures(3 if below else 2, 1, height_ratios=[above, 4, below][: 3 if below else 2])
        left, right = parts[0].subplots(1, 2)
        put_matrix(left, matrix)
        _put_coefficients(right, facts, matrix.adapters)
        left, right = parts[1].subplots(1, 2)
        put_curves(left, curve)
        _put_loss(right, facts["loss"])
        if below:
            put_layers(parts[2], matrix, panels, columns)


def _matrix(facts: Mapping[str, Any]) -> NullSpaceMatrix:
    """Return the ratios by module; the level is an adapter's mean over its modules."""
    data, adapters = list(facts["ratios"]), list(facts["isotropic"])
    by_module = facts["ratios_by_module"]
    values = [[[_number(one[j][k]) for k in adapters] for j in data] for one in by_module.values()]
    level = torch.tensor([_number(facts["isotropic"][k]) for k in adapters], dtype=torch.float64)
    return NullSpaceMatrix(
        tuple(data),
        tuple(adapters),
        tuple(by_module),
        torch.tensor(values, dtype=torch.float64),
        level.expand(len(by_module), -1),
        (0,) * len(data),
    )


def _curve(facts: Mapping[str, Any]) -> NullSpaceCurve:
    scales, values = facts["curve"]["scales"], facts["curve"]["values"]
    rows = [[_number(value) for value in row] for row in values.values()]
    return NullSpaceCurve(
        tuple(values), tuple(scales), tuple(facts["hooks"]), torch.tensor(rows, dtype=torch.float64)
    )


def _put_coefficients(axes: Any, facts: Mapping[str, Any], adapters: tuple[str, ...]) -> None:
    """Draw the coefficients by module or by layer; of rank-one units their mean."""
    modules, initial, unreached = facts["coefficients"], facts["initial"], set(facts["unreached"])
    names = list(modules)
    values = torch.tensor([[_number(one.get(k)) for k in adapters] for one in modules.values()])
    rows = module_rows(names, MOST_ROWS)
    means = torch.stack([values[places].nanmean(0) for _, places in rows])
    limit = float((means - initial).nan_to_num().abs().max()) or 1.0
    columns = [shortened(k) + (" (kept)" if k in facts["kept"] else "") for k in adapters]
    digits = 2 if limit >= 0.05 else 3
    look: dict[str, Any] = {"colours": "RdBu_r", "centre": initial, "limit": limit, "digits": digits}
    heat_map(axes, means, [label for label, _ in rows], columns, label="λ", **look)
    grey = [
        tick
        for tick, (_, at) in zip(axes.get_yticklabels(), rows, strict=True)
        if unreached.issuperset(names[place] for place in at)
    ]
    for tick in grey:
        tick.set_color("#999999")
    axes.set_xlabel("adapter")
    axes.set_title(f"Coefficients, from {initial:g}{' (grey: no gradient)' if grey else ''}", fontsize=10)


def _put_loss(axes: Any, loss: list[float | None]) -> None:
    values = [_number(value) for value in loss]
    axes.plot(
        range(len(values)), values, color="#1f6feb", marker="o" if len(values) < 20 else "", markersize=3
    )
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.ticklabel_format(useOffset=False)
    axes.set_title(f"Loss: {values[0]:.5f} → {values[-1]:.5f}", fontsize=10)


def _number(value: Any) -> float:
    """Return a number of a JSON file, NaN for null, and the mean of the numbers of rank-one units."""
    if value is None:
        return math.nan
    return fmean(value) if isinstance(value, (list, tuple)) else float(value)
