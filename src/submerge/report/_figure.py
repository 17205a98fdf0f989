"""Figures of matplotlib that are written to a path, and the heat map that several pictures draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from submerge.deferred import required
from submerge.errors import Problem, RequestError
from submerge.report._rows import shortened

__all__ = ["check_picture", "figure_at", "heat_map"]

SUFFIXES = (".png", ".svg")
MOST_NUMBERS = 12
"""Columns up to which a heat map's cells hold their numbers."""
MOST_NUMBER_ROWS = 32


def check_picture(path: str | Path) -> None:
    """Raise `RequestError` where a picture could not be drawn to a path: call it before long work.

    The path has to end in `.png` or `.svg`, and matplotlib has to be there.

    Examples:
        >>> from submerge.report import check_picture
        >>> check_picture("ratios.png")
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        what = f"a picture is written as {' or '.join(SUFFIXES)}"
        raise RequestError(Problem(what, str(path), "give it another name"))
    required("matplotlib", "--plot needs")


@contextmanager
def figure_at(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """Yield a figure of a size in inches, which is written to a path at the end."""
    check_picture(path)
    from matplotlib.figure import Figure  # not pyplot, which would hold the figure, and choose a display

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    figure.savefig(path, dpi=120)


def heat_map(
    axes: Any,
    values: torch.Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colours: str,
    centre: float,
    limit: float,
    digits: int,
    label: str,
    one_sided: bool = False,
) -> None:
    """Draw values [rows, columns] about a centre, with a scale of colours; NaN is grey.

    With `one_sided` no value is below the centre, and the colours begin there. Where the columns are few, the
    cells hold their numbers.
    """
    axes.set_facecolor("#dddddd")
    ends = {"vmin": centre if one_sided else centre - limit, "vmax": centre + limit}
    image = axes.imshow(values.numpy(), aspect="auto", cmap=colours, **ends)
    names = [shortened(name) for name in columns]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.figure.colorbar(image, ax=axes).set_label(label, fontsize=8)
    if len(columns) > MOST_NUMBERS or len(rows) > MOST_NUMBER_ROWS:
        return
    for y, row in enumerate(values.tolist()):
        for x, value in enumerate(row):
            dark = abs(value - centre) > 0.6 * limit
            text = "" if value != value else f"{value:z.{digits}f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
