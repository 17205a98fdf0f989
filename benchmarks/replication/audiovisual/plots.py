"""Pictures: bars with whiskers, questions as a heat map, new skills against joint questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.page import pyplot, save, spread
from benchmarks.replication.audiovisual.probes import PROBES, groups
from benchmarks.replication.audiovisual.rows import CEILINGS
from benchmarks.replication.lm.results import by_row
from benchmarks.replication.plots import CEILING, OURS, heat_map

__all__ = ["draw"]

LEAST = 50
"""Joint questions below which nothing is of interest, %."""


def draw(results: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw three pictures for each way of training; return their paths."""
    plt = pyplot()
    return [
        save(paint(plt, by_row(seeds)), folder / f"{stem}-{way}-{name}.png")
        for way, seeds in results["ways"].items()
        for name, paint in (("bars", _bars), ("questions", _heat), ("trade-off", _curves))
    ]


def _bars(plt: Any, rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    rows = {name: results for name, results in rows.items() if "mean" in results[0]["groups"]}
    figure, axes = plt.subplots(figsize=(8, 1 + 0.3 * len(rows)))
    for place, (name, results) in enumerate(rows.items()):
        mean, deviation = spread(one["groups"]["mean"] for one in results)
        colour = CEILING if name in CEILINGS else OURS
        axes.barh(place, 100 * mean, xerr=100 * deviation, color=colour, capsize=2)
        for group, mark in (("new", "o"), ("joint", "s")):
            value, _ = spread(one["groups"][group] for one in results)
            label = None if place else f"{group} questions"
            axes.plot(100 * value, place, mark, color="#111", markersize=3, label=label)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean over groups of questions, %; whiskers: one standard deviation over seeds")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _heat(plt: Any, rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    names = [probe.name for probe in PROBES]
    values = [
        [
            100 * spread(one["test"][name] for one in results)[0]
            if name in results[0]["test"]
            else float("nan")
            for name in names
        ]
        for results in rows.values()
    ]
    figure, axes = plt.subplots(figsize=(3 + 0.42 * len(names), 1.5 + 0.3 * len(rows)))
    heat_map(axes, values, fontsize=6)
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=60, ha="right")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    return figure


def _curves(plt: Any, rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Return new skills against joint questions along the scale, on validation; SSAM at all its ranks."""
    figure, axes = plt.subplots(figsize=(9, 6))
    curved = [name for name, results in rows.items() if "curve" in results[0]]
    for number, name in enumerate(curved):
        curves = [one["curve"] for one in rows[name] if "curve" in one]
        scales = sorted(set.intersection(*(set(curve) for curve in curves)), key=float)
        new, joint = (
            [100 * spread(curve[scale][group] for curve in curves)[0] for scale in scales]
            for group in ("new", "joint")
        )
        bold = name.startswith("ssam")
        style = {"linestyle": "-" if bold else "--", "linewidth": 2 if bold else 1}
        axes.plot(new, joint, marker=".", label=name, color=plt.get_cmap("tab20")(number % 20), **style)
    for name in CEILINGS:
        means = [groups(one["validation"]) for one in rows[name]]
        if "joint" in means[0] and not name.endswith(" alone"):  # these lie far below
            new, joint = (100 * spread(one[group] for one in means)[0] for group in ("new", "joint"))
            axes.plot(new, joint, "*", color="#111", markersize=8)
            axes.annotate(name, (new, joint), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axes.set_ylim(bottom=LEAST)
    axes.set_xlabel("new skills, %, validation")
    axes.set_ylabel("joint questions, %, validation")
    if curved:
        axes.legend(frameon=False, fontsize=7, ncols=3, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
