"""Gathers what lies in the cache into one JSON, and shows it as tables and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.page import Table, percent, pyplot, save, spread
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache, Result
from benchmarks.replication.continual.rows import DISCRIMINANT, MERGED, MIXED, REFERENCES, TOLD, rows
from benchmarks.replication.continual.scores import final, forgetting
from benchmarks.replication.continual.suite import ContinualSuite
from benchmarks.replication.earlier import publish
from benchmarks.replication.lm.results import each, names_of
from benchmarks.replication.plots import CEILING, OURS

__all__ = ["draw", "gather", "markdown", "sanity", "tables", "write"]

WAYS = {
    "uncentred": "not centred",
    "question": "and question",
    "discriminant": "discriminant",
    "discriminant_question": "discriminant, and question",
    TOLD: "task told",
}
"""Other ways to serve a mixture -> their columns."""
FORGETTING = {"discriminant": "by discriminant", "discriminant_question": "by it and question"}
"""Ways to serve whose forgetting stands beside that by the image -> their columns."""
MORE = ("steps", "discriminant", "discriminant-steps")
"""What the folders of further results of a row are called, behind its name."""


def write(suite: ContinualSuite, cache: Cache, options: argparse.Namespace) -> None:
    """Write JSON, tables and pictures of what is finished."""
    seeds = gather(cache, options.seeds, [row.name for row in rows(options.methods)])
    page.need(seeds, options.suite)
    found = page.facts(suite.name, suite.facts()) | {
        "work": store.work(cache.root),
        "base": store.read(suite.base(cache)),
        "seeds": seeds,
    }
    publish(found, f"replication-{suite.name}", cache.root, options, markdown, draw)


def gather(cache: Cache, seeds: Iterable[int], names: Sequence[str]) -> dict[str, Any]:
    """Return seed -> row -> result, of seeds whose individual models are scored."""
    finished: dict[str, Any] = {}
    for seed in seeds:
        place = cache.root / f"seed{seed}" / "results"
        results = {name: store.read(place / name) for name in (*REFERENCES, *names)}
        if results["individual"]:
            finished[str(seed)] = {
                name: _shown(result, *(store.read(place / f"{name}-{more}") for more in MORE))
                for name, result in results.items()
                if result
            }
    return finished


def _shown(
    result: Result, followed: Result | None, served: Result | None, steps_served: Result | None
) -> Result:
    """Return a result with the scores after each task, where it has them, and what they come to.

    What is served by a discriminant has results of its own.
    """
    steps = result.get("steps") or (followed or {}).get("steps") or [result["test"]]
    facts = {"config": result.pop("config")["row"], "steps": steps}
    for way in DISCRIMINANT:
        facts |= {way: served[way]} if served else {}
        facts |= {f"forgetting_{way}": forgetting(steps_served[way])} if steps_served else {}
    return result | facts | {"final": final(steps), "forgetting": forgetting(steps)}


def tables(seeds: Mapping[str, Any]) -> list[Table]:
    """Return final accuracy and forgetting, by projector; what must hold."""
    tasks = sorted(each(seeds, "individual")[0]["steps"][-1])
    ways = ["final", *WAYS.values(), "forgetting", *FORGETTING.values()]
    columns = ["method", *ways, *tasks, "scales", "stored MB"]
    groups = {"References": list(REFERENCES)} | {
        f"Merges, {title}": [name for name in names_of(seeds) if name.endswith(f"-{projectors}")]
        for projectors, title in (
            (MIXED, "projectors mixed by the image (CPM)"),
            (MERGED, "projectors merged"),
        )
    }
    shown: list[Table] = []
    for title, names in groups.items():
        present = [(name, each(seeds, name)) for name in names if each(seeds, name)]
        lines = [
            [page.named(name.rpartition("-")[0] or name, results, seeds), *_cells(results, tasks)]
            for name, results in present
        ]
        shown.append((f"{title}, {len(seeds)} order{'s' * (len(seeds) > 1)}", columns, lines))
    return [*shown, page.checks("What must hold", sanity(seeds))]


def _present(results: Sequence[Result], key: str) -> list[float]:
    return [one[key] for one in results if one.get(key) is not None]


def _cells(results: Sequence[Result], tasks: Sequence[str]) -> list[str]:
    lost = _present(results, "forgetting")
    ways = [[final([one[way]]) for one in results if way in one] for way in WAYS]
    return [
        percent(one["final"] for one in results),
        *(percent(scores) if scores else "" for scores in ways),
        percent(lost) if lost else "",
        *(percent(own) if (own := _present(results, f"forgetting_{way}")) else "" for way in FORGETTING),
        *(percent(one["steps"][-1][task] for one in results) for task in tasks),
        page.scales(results),
        f"{results[0]['bytes'] / 1e6:.0f}" if "bytes" in results[0] else "",
    ]


def sanity(seeds: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Return check, whether it holds for the mean over orders, and by what numbers."""
    checks = []
    for title, better, worse in (
        ("sequential training forgets: below the individual models", "individual", "sequential"),
        ("mixed projectors are above merged ones: the average", f"average-{MIXED}", f"average-{MERGED}"),
        ("MAny is above sequential training", f"many-{MIXED}", "sequential"),
    ):
        if each(seeds, better) and each(seeds, worse):
            high, low = _mean(seeds, better), _mean(seeds, worse)
            checks.append((title, low < high, f"{high:.1f}; {low:.1f}"))
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
Final: mean accuracy over all tasks after the last one. A merge does not depend on their order, so that a seed
has one. Forgetting: how far each task but the last fell since it was best, by merges of the tasks so far.
Mixtures are served by prototypes of the image (τ = 0.1); not centred (τ = 0.03); of image and question
(τ = 0.1); by a linear discriminant of the tasks' images, and of their questions, too (τ = 1); and with each
question's task told. Scales: chosen on the validation of all tasks, by prototypes of the image; with * one
lies at an end of the grid. Individual: each task by its own model. Joint: one model of all tasks, with as
many steps. Sequential: one adapter trained on one task after another; EWC: with a penalty on what changes."""


def draw(results: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw final accuracies as bars, and the mean over the tasks so far after each task; return paths."""
    plt, seeds = pyplot(), results["seeds"]
    names = names_of(seeds)
    bars, axes = plt.subplots(figsize=(8, 1 + 0.25 * len(names)))
    for place, name in enumerate(names):
        mean, deviation = spread(one["final"] for one in each(seeds, name))
        colour = CEILING if name in REFERENCES else OURS if name.endswith(f"-{MIXED}") else "#8ab4f8"
        axes.barh(place, 100 * mean, xerr=100 * deviation, color=colour, capsize=2)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("mean accuracy after the last task, %; whiskers: one standard deviation over orders")
    steps, lines = plt.subplots(figsize=(8, 5))
    for name in names:
        followed = [row for row in each(seeds, name) if len(row["steps"]) > 1]
        if followed:
            means = [
                100 * spread(sum(row["steps"][i].values()) / (i + 1) for row in followed)[0]
                for i in range(len(followed[0]["steps"]))
            ]
            style = "-" if name in REFERENCES else "--"
            lines.plot(range(1, len(means) + 1), means, style, marker=".", label=name, linewidth=1)
    lines.set_xlabel("tasks so far")
    lines.set_ylabel("mean accuracy over them, %")
    if lines.lines:
        lines.legend(frameon=False, fontsize=7)
    for panel in (axes, lines):
        panel.spines[["top", "right"]].set_visible(False)
    return [save(bars, folder / f"{stem}-bars.png"), save(steps, folder / f"{stem}-steps.png")]
