"""Draws what is remembered of each task while others follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from _examples import Examples

__all__ = ["draw"]

COLOURS = {"own adapter each": "#2da44e", "one adapter, trained in turn": "#d1242f", "MAny": "#1f6feb"}


def draw(
    rows: Mapping[str, Sequence[Mapping[str, float]]], tested: Mapping[str, Examples], path: Path
) -> None:
    """Draw a panel for each task, with the accuracy of each model after each task from then on."""
    kinds = list(next(iter(rows.values()))[-1])
    figure, panels = plt.subplots(1, len(kinds), figsize=(11, 3.8), sharey=True, layout="constrained")
    for number, (kind, axes) in enumerate(zip(kinds, panels, strict=True)):
        places = range(number, len(kinds))
        for name, scores in rows.items():
            dashed = "--" if name == "own adapter each" else "-"
            values = [scores[place][kind] for place in places]
            axes.plot(places, values, dashed, marker="o", color=COLOURS[name], label=name)
        axes.set_title(kind, fontweight="bold")
        axes.set_xticks(range(len(kinds)), [f"after {other}" for other in kinds], fontsize=8)
        axes.set_xlim(-0.3, len(kinds) - 0.7)
        axes.set_ylim(0, 104)
        axes.spines[["top", "right"]].set_visible(False)
        shown = axes.inset_axes((0.02, 0.04, 0.2, 0.2))
        shown.imshow(tested[kind].inputs[0], cmap="gray", vmin=0, vmax=255)
        shown.set_axis_off()
    panels[0].set_ylabel("right answers, %")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(rows), frameon=False)
    figure.suptitle("Three tasks, one after another: what a model still knows of each")
    figure.savefig(path, dpi=150)
    plt.close(figure)
