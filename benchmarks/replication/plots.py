"""Pictures of the results: bars with whiskers, tasks as a heat map, the score along the scale, the costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import pyplot, save, spread
from benchmarks.replication.report import TITLES

__all__ = ["CEILING", "OURS", "bars", "draw", "heat_map"]

OURS, CEILING = "#1f6feb", "#9aa5b1"


def draw(report: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw the pictures of each kind of specialist; return their paths."""
    plt = pyplot()
    return [
        save(paint(plt, _rows(seeds)), folder / f"{stem}-{kind}-{name}.png")
        for kind, seeds in report["kinds"].items()
        for name, paint in (("bars", bars), ("tasks", _heat), ("scale", _curves), ("costs", _costs))
    ]


def _rows(seeds: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in seeds.values():
        for name, one in (*entry["ceilings"].items(), *entry["methods"].items()):
            rows.setdefault(name, []).append(one)
    return rows


def bars(plt: Any, rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Return a figure of each row's mean, with whiskers over its results, and of its worst task."""
    figure, axes = plt.subplots(figsize=(8, 1 + 0.3 * len(rows)))
    for place, (name, results) in enumerate(rows.items()):
        mean, deviation = spread(one["summary"]["mean"] for one in results)
        worst, _ = spread(one["summary"]["worst"] for one in results)
        axes.barh(
            place, 100 * mean, xerr=100 * deviation, color=CEILING if name in TITLES else OURS, capsize=2
        )
        axes.plot(100 * worst, place, "o", color="#111", markersize=3, label=None if place else "worst task")
    axes.set_yticks(range(len(rows)), [TITLES.get(name, name) for name in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean over tasks, % of the individual model; whiskers: one standard deviation over seeds")
    axes.axvline(100, color="#111", linewidth=0.5)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _heat(plt: Any, rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    tasks = list(next(iter(rows.values()))[0]["test"])
    values = [
        [100 * spread(one["summary"]["normalised"][task] for one in results)[0] for task in tasks]
        for results in rows.values()
    ]
    figure, axes = plt.subplots(figsize=(2.5 + 0.8 * len(tasks), 1 + 0.3 * len(rows)))
    heat_map(axes, values, fontsize=7)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=8, rotation=30)
    axes.set_yticks(range(len(rows)), [TITLES.get(name, name) for name in rows], fontsize=8)
    axes.set_title("% of the individual model", fontsize=9)
    return figure


def heat_map(axes: Any, values: Sequence[Sequence[float]], fontsize: int) -> None:
    """Draw numbers from 0 to 100 as a heat map; where there is none (NaN) the cell stays empty."""
    axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value == value:
                style = {"color": "black" if value > 60 else "white", "fontsize": fontsize}
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", **style)


def _curves(plt: Any, rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 5))
    axes.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    for name, results in rows.items():
        curves = [one["curve"]["screen"] or one["curve"]["validation"] for one in results if "curve" in one]
        if not curves:
            continue
        scales = sorted(set.intersection(*(set(curve) for curve in curves)), key=float)
        means = [100 * spread(curve[scale] for curve in curves)[0] for scale in scales]
        axes.plot([float(scale) for scale in scales], means, marker=".", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("scale")
    axes.set_ylabel("validation, % of the individual model")
    if axes.lines:
        axes.legend(frameon=False, fontsize=7, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _costs(plt: Any, rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Draw the mean score against what is stored, and against the time of the merge."""
    figure, (stored, merged) = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for name, results in rows.items():
        mean = 100 * spread(one["summary"]["mean"] for one in results)[0]
        style = {"color": CEILING if name in TITLES else OURS, "s": 14}
        seconds = [one["cost"]["seconds"] for one in results if "cost" in one]
        places = ((stored, results[0].get("bytes", 0) / 1e6), (merged, seconds[0] if seconds else 0))
        for axes, value in places:
            if value:
                axes.scatter(value, mean, **style)
                axes.annotate(name, (value, mean), (3, 3), textcoords="offset points", fontsize=6)
    stored.set_ylabel("mean over tasks, % of the individual model")
    stored.set_xlabel("stored, MB")
    merged.set_xlabel("`submerge merge`, s")
    for axes in (stored, merged):
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
