"""Gathers what lies in the cache into one JSON, and shows it as tables and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.console import say
from benchmarks.page import Table, percent, pyplot, save, spread
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache
from benchmarks.replication.continual.merge import REFERENCES, RULES, final, forgetting
from benchmarks.replication.continual.suite import ContinualSuite
from benchmarks.replication.lm.results import each, names_of
from benchmarks.replication.plots import CEILING, OURS

__all__ = ["draw", "gather", "markdown", "sanity", "tables", "write"]


def write(suite: ContinualSuite, cache: Cache, options: argparse.Namespace) -> None:
    """Write JSON, tables and pictures of what is finished."""
    seeds = gather(cache, range(options.seeds), [row.name for row in suite.rows(options)])
    page.need(seeds, options.suite)
    results = page.facts(suite.name, suite.facts()) | {
        "work": store.work(cache.root),
        "lm": store.read(suite.lm_folder(cache)),
        "seeds": seeds,
    }
    out, stem = page.out_folder(cache.root, options), f"replication-{suite.name}"
    page.write(out, stem, results, markdown(results))
    draw(seeds, out, stem)
    say(f"wrote {stem}.json, .md and .png in {out}")


def gather(cache: Cache, seeds: Iterable[int], names: Sequence[str]) -> dict[str, Any]:
    """Return seed -> row -> result, as far as references are finished."""
    finished: dict[str, Any] = {}
    for seed in seeds:
        rows: dict[str, Any] = {}
        for name in (*REFERENCES, *(f"{name}-{rule}" for rule in RULES for name in names)):
            result = store.read(cache.root / f"seed{seed}" / "results" / name)
            if result is not None:
                config = result.pop("config")
                rows[name] = result | {
                    "config": config["row"],
                    "order": config["order"],
                    "final": final(result["steps"]),
                    "forgetting": forgetting(result["steps"]),
                }
        if all(name in rows for name in REFERENCES):
            finished[str(seed)] = rows
    return finished


def tables(seeds: Mapping[str, Any]) -> list[Table]:
    """Return final accuracy and forgetting, by projector; what a merge costs; what must hold."""
    tasks = sorted(each(seeds, "individual")[0]["steps"][-1])
    columns = ["method", "final", "forgetting", *tasks, "scales", "s", "stored MB"]
    groups = {"References": list(REFERENCES)} | {
        f"Merges, {title}": [name for name in names_of(seeds) if name.endswith(f"-{rule}")]
        for rule, title in (("average", "average of the projectors"), ("own", "the task's own projector"))
    }
    shown: list[Table] = []
    for title, names in groups.items():
        lines = []
        for name in names:
            rows = each(seeds, name)
            lost = [one["forgetting"] for one in rows]
            costs = [one["cost"]["seconds"] for one in rows if "cost" in one]
            lines.append(
                [
                    name.rpartition("-")[0] or name,
                    percent(one["final"] for one in rows),
                    percent(lost) if None not in lost else "",
                    *(percent(one["steps"][-1][task] for one in rows) for task in tasks),
                    page.scales(rows),
                    f"{costs[0]:.1f}" if costs else "",
                    f"{rows[0]['bytes'] / 1e6:.2f}" if "bytes" in rows[0] else "",
                ]
            )
        shown.append((f"{title}, {len(seeds)} order{'s' * (len(seeds) > 1)}", columns, lines))
    return [*shown, page.checks("What must hold", sanity(seeds))]


def sanity(seeds: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Return check, whether it holds for the mean over orders, and by what numbers."""
    individual, sequential = (_mean(seeds, name) for name in ("individual", "sequential"))
    checks = [
        (
            "sequential training forgets: below the individual models",
            sequential < individual,
            f"{sequential:.1f}; {individual:.1f}",
        )
    ]
    if "average-own" in names_of(seeds):
        merged = _mean(seeds, "average-own")
        title = "the average of LoRAs, with each task's own projector, is above sequential training"
        checks.append((title, merged > sequential, f"{merged:.1f}; {sequential:.1f}"))
    return checks


def _mean(seeds: Mapping[str, Any], name: str) -> float:
    return 100 * spread(one["final"] for one in each(seeds, name))[0]


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page that says how it was made."""
    suite = results["suite"]
    about = [
        f"{suite['validation']} validation and {suite['test']} test questions a task. Accuracy in %, mean ± "
        "standard deviation over orders.",
        "",
        *(f"{i + 1}. {', '.join(order)}" for i, order in enumerate(suite["orders"])),
        "",
        results["work"],
    ]
    return page.markdown(results, about, tables(results["seeds"]), NOTE)


NOTE = """\
Final: mean accuracy over all tasks after the last one. Forgetting: how far each task but the last fell
since it was best. Scales: chosen on the validation of all tasks, one an order, and taken after every task;
with * it lies at an end of the grid. Individual: each task by its own model. Joint: one model of all tasks,
with as many steps. Sequential: one model trained on one task after another."""


def draw(seeds: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw final accuracies as bars, and the mean over the tasks so far after each task; return paths."""
    plt = pyplot()
    names = names_of(seeds)
    bars, axes = plt.subplots(figsize=(8, 1 + 0.25 * len(names)))
    for place, name in enumerate(names):
        mean, deviation = spread(one["final"] for one in each(seeds, name))
        colour = CEILING if name in REFERENCES else OURS if name.endswith("-own") else "#8ab4f8"
        axes.barh(place, 100 * mean, xerr=100 * deviation, color=colour, capsize=2)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("mean accuracy after the last task, %; whiskers: one standard deviation over orders")
    steps, lines = plt.subplots(figsize=(8, 5))
    lines.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    for name in names:
        rows = each(seeds, name)
        if len(rows[0]["steps"]) > 1 and not name.endswith("-average"):
            means = [
                100 * spread(sum(row["steps"][i].values()) / (i + 1) for row in rows)[0]
                for i in range(len(rows[0]["steps"]))
            ]
            style = "-" if name in REFERENCES else "--"
            lines.plot(range(1, len(means) + 1), means, style, marker=".", label=name, linewidth=1)
    lines.set_xlabel("tasks so far")
    lines.set_ylabel("mean accuracy over them, %")
    lines.legend(frameon=False, fontsize=7, ncols=2)
    for panel in (axes, lines):
        panel.spines[["top", "right"]].set_visible(False)
    return [save(bars, folder / f"{stem}-bars.png"), save(steps, folder / f"{stem}-steps.png")]
