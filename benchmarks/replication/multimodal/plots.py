"""Pictures: the score along the scale λ of each merge, and along the rank k of SSAM's subspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import pyplot, save, spread
from benchmarks.replication.lm.results import by_row
from benchmarks.replication.multimodal.rows import COMPOSED, SSAM_RANKS

__all__ = ["draw"]

Rows = Mapping[str, Sequence[Mapping[str, Any]]]

SHOWN = ("mean", "joint")
"""The groups of questions that have a picture of their own."""


def draw(results: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw the score along λ and along k, as far as rows have them; return the paths of the pictures."""
    plt, rows = pyplot(), by_row(results["seeds"])
    painted = {"scale": _along_scale(plt, rows), "rank": _along_rank(plt, rows)}
    return [
        save(figure, folder / f"{stem}-{name}.png") for name, figure in painted.items() if figure is not None
    ]


def _along_scale(plt: Any, rows: Rows) -> Any | None:
    """Return each merge's score on validation over λ, and where its scale was chosen, by seeds."""
    curved = {name: [one["curve"] for one in of if "curve" in one] for name, of in rows.items()}
    curved = {name: curves for name, curves in curved.items() if curves}
    if not curved:
        return None
    figure, places = plt.subplots(1, len(SHOWN), figsize=(12, 5))
    for axes, group in zip(places, SHOWN, strict=True):
        for number, (name, curves) in enumerate(curved.items()):
            # seeds look for their scales in different places: a point is the mean of those that were there
            scales = sorted({scale for curve in curves for scale in curve}, key=float)
            means = [100 * spread(c[scale][group] for c in curves if scale in c)[0] for scale in scales]
            style = {"linewidth": 2} if name.startswith("ssam") else {"linewidth": 1, "linestyle": "--"}
            colour = plt.get_cmap("tab20")(number % 20)
            axes.plot(list(map(float, scales)), means, marker=".", label=name, color=colour, **style)
        _label(axes, "scale λ", f"{group}, %, validation")
    places[0].legend(frameon=False, fontsize=7)
    return figure


def _along_rank(plt: Any, rows: Rows) -> Any | None:
    """Return SSAM's test scores over k, beside those of compositions that are no merge, as lines."""
    ranks = {rank: rows[name] for name, rank in SSAM_RANKS.items() if name in rows}
    if len(ranks) < 2:
        return None
    figure, places = plt.subplots(1, len(SHOWN), figsize=(12, 4), sharex=True)
    for axes, group in zip(places, SHOWN, strict=True):
        points = [spread(100 * one["groups"][group] for one in of) for of in ranks.values()]
        means, deviations = ([point[i] for point in points] for i in (0, 1))
        axes.errorbar(list(ranks), means, yerr=deviations, marker="o", capsize=2, label="ssam")
        for name in (row.name for row in COMPOSED if row.name in rows):
            mean, _ = spread(100 * one["groups"][group] for one in rows[name])
            axes.axhline(mean, linewidth=1, linestyle=":", color="#9aa5b1")
            axes.annotate(
                name, (next(iter(ranks)), mean), fontsize=7, xytext=(2, 2), textcoords="offset points"
            )
        _label(axes, "rank k of the shared subspaces", f"{group}, %, test")
    return figure


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
