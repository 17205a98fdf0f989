"""A picture of the scores by which a router chose, and of which tasks were taken for which."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from submerge.deferred import required
from submerge.report._rows import module_rows, shortened
from submerge.report._survey import Survey

__all__ = ["draw"]

MOST_ROWS = 48
"""Sites that have rows of their own; of more, those of a layer are averaged."""
LIMIT = 1.5
"""The z-score at which colours end."""


def draw(survey: Survey, path: Path) -> None:
    """Draw z-scores of −r at each site for each task, and chosen against known tasks.

    Where tasks are known, each task's scores are those of its own inputs. Raises `RequestError` where
    matplotlib is missing.
    """
    required("matplotlib", "--plot needs").use("Agg")
    pyplot = required("matplotlib.pyplot", "--plot needs")
    rows, means = module_rows(survey.sites, MOST_ROWS), _mean_scores(survey)
    labels = [label for label, _ in rows]
    tasks = len(survey.names)
    width, height = 0.5 * tasks + 4.5, 0.24 * max(len(labels), 2 * tasks) + 2.2
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(2 * max(width, 5.5), max(height, 4.2)), layout="constrained"
    )
    left.set_title(f"How well each task explains {'its own inputs' if survey.labelled else 'the inputs'}")
    if labels:
        _draw_scores(figure, left, survey, labels, torch.stack([means[at].mean(0) for _, at in rows]))
    else:
        left.text(0.5, 0.5, "nothing was looked at: there is one task", ha="center", transform=left.transAxes)
        left.set_axis_off()
    (_draw_confusion if survey.labelled else _draw_counts)(right, survey)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_scores(figure: Any, axes: Any, survey: Survey, labels: list[str], scores: torch.Tensor) -> None:
    """Draw the scores [rows, T], with a scale of colours."""
    axes.set_facecolor("#dddddd")  # a task without inputs
    picture = axes.imshow(scores.numpy(), aspect="auto", cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT)
    _name_columns(axes, survey)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlabel("task")
    bar = figure.colorbar(picture, ax=axes, extend="both", shrink=0.8)
    bar.set_label("z-score over the tasks (red: better than the others)")


def _draw_counts(axes: Any, survey: Survey) -> None:
    """Draw how many inputs were given each task."""
    _name_columns(axes, survey)
    axes.set_xlabel("chosen task")
    counts = Counter(survey.tasks)
    bars = axes.bar(range(len(survey.names)), [counts[name] for name in survey.names], color="#1f6feb")
    axes.bar_label(bars)
    axes.set_ylabel("inputs")
    axes.set_title(f"Chosen tasks of {len(survey.items)} inputs")


def _draw_confusion(axes: Any, survey: Survey) -> None:
    """Draw how many inputs of each known task were given which."""
    _name_columns(axes, survey)
    axes.set_xlabel("chosen task")
    known = list(survey.confusion)
    counts = [[survey.confusion[row][name] for name in survey.names] for row in known]
    most = max(map(max, counts))
    axes.imshow(counts, aspect="auto", cmap="Blues", vmin=0)
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            colour = "white" if count > 0.55 * most else "black"
            axes.text(x, y, str(count), ha="center", va="center", color=colour)
    axes.set_yticks(range(len(known)), [shortened(name) for name in known])
    axes.set_ylabel("task of the input")
    axes.set_title(f"{survey.accuracy:.1%} of {len(survey.items)} inputs got their own task")


def _name_columns(axes: Any, survey: Survey) -> None:
    names = [shortened(name) for name in survey.names]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")


def _mean_scores(survey: Survey) -> torch.Tensor:
    """Return the mean scores [sites, T] of all inputs, or of each task's own inputs where tasks are known.

    NaN for a task that none of them is of.
    """
    scores = survey.scores.double()  # [sites, B, T]
    if not survey.labelled:
        return scores.mean(1)
    own = torch.tensor([[item.task == name for name in survey.names] for item in survey.items])
    counts = own.sum(0)
    return (scores * own).sum(1) / counts.where(counts > 0, math.nan)
