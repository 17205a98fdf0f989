"""A picture of what a router saw, and of which tasks were taken for which."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from submerge.deferred import required
from submerge.report._survey import Survey
from submerge.store import layer_of

__all__ = ["draw"]

MOST_ROWS = 48
"""Sites that have rows of their own; of more, those of a layer are averaged."""
LONGEST = 24
LIMIT = 1.5
"""The z-score at which colours end."""


def draw(found: Survey, path: Path) -> None:
    """Draw z-scores of −r at each site for each task, and chosen against known tasks.

    Where tasks are known, each task's scores are those of its own inputs.
    """
    required("matplotlib", "--plot needs").use("Agg")
    pyplot = required("matplotlib.pyplot", "--plot needs")
    names = [_start(name) for name in found.names]
    labels, values = _rows(found)
    width, height = 0.5 * len(names) + 4.5, 0.24 * max(len(labels), 2 * len(names)) + 2.2
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(2 * max(width, 5.5), max(height, 4.2)), layout="constrained"
    )
    _sites(figure, left, names, labels, values, found.told)
    _confusion(right, names, found)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _sites(
    figure: Any, axes: Any, names: list[str], labels: list[str], values: torch.Tensor, told: bool
) -> None:
    """Draw the scores [rows, T], with a scale of colours."""
    own = "its own inputs" if told else "the inputs"
    axes.set_title(f"How well each task explains {own}")
    if not labels:
        axes.text(0.5, 0.5, "nothing was looked at: there is one task", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.set_facecolor("#dddddd")  # a task without inputs
    picture = axes.imshow(values.numpy(), aspect="auto", cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlabel("task")
    bar = figure.colorbar(picture, ax=axes, extend="both", shrink=0.8)
    bar.set_label("z-score over the tasks (red: better than the others)")


def _confusion(axes: Any, names: list[str], found: Survey) -> None:
    """Draw how many inputs of each known task were given which; where none is known, how many each has."""
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel("chosen task")
    if not found.told:
        counts = Counter(found.tasks)
        bars = axes.bar(range(len(names)), [counts[name] for name in found.names], color="#1f6feb")
        axes.bar_label(bars)
        axes.set_ylabel("inputs")
        axes.set_title(f"Chosen tasks of {len(found.items)} inputs")
        return
    known = list(found.confusion)
    matrix = [[found.confusion[row][name] for name in found.names] for row in known]
    most = max(map(max, matrix))
    axes.imshow(matrix, aspect="auto", cmap="Blues", vmin=0)
    for y, line in enumerate(matrix):
        for x, count in enumerate(line):
            colour = "white" if count > 0.55 * most else "black"
            axes.text(x, y, str(count), ha="center", va="center", color=colour)
    axes.set_yticks(range(len(known)), [_start(row) for row in known])
    axes.set_ylabel("task of the input")
    axes.set_title(f"{found.accuracy:.1%} of {len(found.items)} inputs got their own task")


def _rows(found: Survey) -> tuple[list[str], torch.Tensor]:
    """Return a label and the tasks' mean scores for each site, or for each layer where sites are many."""
    scores = found.scores.double()  # [sites, B, T]
    if found.told:
        own = torch.tensor([[item.task == name for name in found.names] for item in found.items])
        counts = own.sum(0)
        values = (scores * own).sum(1) / counts.where(counts > 0, math.nan)
    else:
        values = scores.mean(1)
    places = [layer_of(site) for site in found.sites]
    stacks = {place[0] for place in places if place}
    names = [_name(site, len(stacks) > 1) for site in found.sites]
    if len(names) <= MOST_ROWS:
        return names, values
    layers: dict[Any, list[int]] = {}
    for number, place in enumerate(places):
        layers.setdefault(place, []).append(number)
    labels = [f"{place[0] + ' ' if len(stacks) > 1 else ''}layer {place[1]}" for place in layers if place]
    return labels, torch.stack([values[some].mean(0) for place, some in layers.items() if place])


def _name(site: str, several: bool) -> str:
    """Return a site's name as its layer and the first map that takes it in."""
    place = layer_of(site)
    if place is None:
        return _end(site)
    stack, number = place
    rest = site.removeprefix(f"{stack}.{number}.")
    return f"{stack + ' ' if several else ''}layer {number}  {_end(rest)}"


def _end(name: str) -> str:
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def _start(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
