"""Shows accuracies: a table in the terminal and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from _tasks import TASKS

__all__ = ["Row", "draw", "table"]

COLOURS = {"base": "#9aa5b1", "tuned": "#9aa5b1", "own": "#2da44e", "merge": "#1f6feb"}
COLOURS |= {"served": "#d97706", "lora: tuned": "#9aa5b1", "lora: own": "#2da44e", "lora: merge": "#8250df"}


@dataclass(frozen=True)
class Row:
    """One model's accuracies on all tasks; `kind` is base, tuned, own, merge or served, or one with LoRA.

    A row of kind `own` is no model: every task is judged with the fine-tune made for it.
    """

    name: str
    kind: str
    scores: dict[str, float]
    scale: float | None = None

    @property
    def is_merge(self) -> bool:
        return self.kind.endswith("merge")

    @property
    def is_lora(self) -> bool:
        return self.kind.startswith("lora")

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / len(self.scores)

    @property
    def worst(self) -> float:
        return min(self.scores.values())


def table(rows: Sequence[Row]) -> Table:
    """Return the accuracies for the terminal."""
    found = Table(
        title="Accuracy on held-out digits, %", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    found.add_column("model", no_wrap=True)
    found.add_column("λ", justify="right")
    for task in TASKS:
        found.add_column(task.name, justify="right")
    found.add_column("mean", justify="right", style="bold")
    found.add_column("worst", justify="right")
    best = {kind: max(row.mean for row in rows if row.kind == kind) for kind in {row.kind for row in rows}}
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        scores = [f"{row.scores[task.name]:.1f}" for task in TASKS]
        found.add_row(
            row.name,
            "" if row.scale is None else f"{row.scale:g}",
            *scores,
            f"{row.mean:.1f}",
            f"{row.worst:.1f}",
            style="bold cyan" if row.is_merge and row.mean == best[row.kind] else "",
            end_section=following is not None and following.kind != row.kind,
        )
    return found


def draw(rows: Sequence[Row], examples: torch.Tensor, path: Path) -> None:
    """Draw the means and worst tasks of all merges, and every model's accuracy on every task.

    `examples`, shape [tasks, 8, 8], are shown above the columns.
    """
    figure = plt.figure(figsize=(13, 8.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    shown = [row for row in rows if not row.kind.endswith("tuned")]
    whole, adapters = ([row for row in shown if row.is_lora == lora] for lora in (False, True))
    upper, lower = left.subplots(2, height_ratios=[len(whole), len(adapters)], sharex=True)
    _bars(upper, whole)
    upper.set_title("full fine-tunes", loc="left", fontsize=10)
    _bars(lower, adapters)
    lower.set_title("LoRA adapters of rank 8", loc="left", fontsize=10)
    lower.set_xlabel("mean accuracy over all tasks, %")
    lower.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    grid = right.add_gridspec(2, len(TASKS), height_ratios=[1, 9])
    for column, image in enumerate(examples):
        axes = right.add_subplot(grid[0, column])
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    _heat_map(right.add_subplot(grid[1, :]), rows)
    figure.suptitle(
        "Four fine-tunes of one vision transformer merged into one model, whole and as adapters", fontsize=14
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _bars(axes: plt.Axes, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    bars = axes.barh(places, [r.mean for r in rows], color=[COLOURS[r.kind] for r in rows], height=0.7)
    axes.bar_label(bars, [f"{r.mean:.0f}" for r in rows], padding=4, fontweight="bold")
    axes.scatter(
        [r.worst for r in rows],
        places,
        marker="D",
        s=42,
        color="white",
        edgecolors="black",
        zorder=3,
        label="worst task",
    )
    axes.axvline(100 / 10, color="black", lw=0.8, ls=":", label="chance")
    axes.set_yticks(places, [_label(r) for r in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)


def _heat_map(axes: plt.Axes, rows: Sequence[Row]) -> None:
    values = [[row.scores[task.name] for task in TASKS] for row in rows]
    axes.imshow(values, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            axes.text(
                x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 60 else "black"
            )
    for y, (row, following) in enumerate(pairwise(rows)):
        if row.kind != following.kind:
            axes.axhline(y + 0.5, color="white", lw=4)
    axes.set_xticks(range(len(TASKS)), [task.name for task in TASKS])
    axes.set_yticks(range(len(rows)), [_label(r) for r in rows])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def _label(row: Row) -> str:
    return row.name if row.scale is None else f"{row.name}, λ = {row.scale:g}"
