"""The tables and the picture of the ways to serve all tasks as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import Table, percent, pyplot, save, spread
from benchmarks.replication import cache as store
from benchmarks.replication import report
from benchmarks.replication.cache import Cache
from benchmarks.replication.report import KINDS, TITLES
from benchmarks.replication.routing.rows import ROWS
from benchmarks.replication.scores import summary
from benchmarks.replication.suite import Suite

__all__ = ["NOTE", "draw", "gather", "tables"]

KNOWN = ("base", "task_arithmetic", "ties", "tsv_m", "iso_c", "iso_cts")
"""Rows of the static merges that are shown beside, with the task's own head."""


NOTE = (
    "Strict: an answer of another task's head is wrong, and for a task that is scored it is 0.5. Right head: "
    "the share of inputs that their own task's head answered. Tasks run: how many updates were merged for an "
    "input on average. Validation: the same mean on validation items, by which variants are compared."
)


def gather(suite: Suite, cache: Cache, seeds: Sequence[int]) -> dict[str, Any]:
    """Return kind -> seed -> rows as far as they are finished, and ceilings and static merges beside.

    What was made with other settings than today's is left out; `outdated` names it.
    """
    kinds: dict[str, Any] = {}
    for kind, entries in report.gather(suite, cache, seeds, KNOWN).items():
        for seed, beside in entries.items():
            trained = [marker["config"] for marker in beside["trained"].values()]
            entry: dict[str, Any] = {"rows": {}, "known": {}, "outdated": []}
            for row in ROWS:
                if (result := store.read(cache.served(int(seed), kind, row.name))) is None:
                    continue
                if store.current(result, row.facts(), trained):
                    entry["rows"][row.name] = result
                else:
                    entry["outdated"].append(row.name)
            if not entry["rows"]:
                continue
            known = beside["ceilings"] | beside["methods"]
            entry["known"] = {name: known[name] for name in (*KNOWN, "compression") if name in known}
            individual = known["individual"]
            for result in (*entry["rows"].values(), *entry["known"].values()):
                result.pop("config")
                result["summary"] = summary(result["test"], individual["test"])
                result["on validation"] = summary(result["validation"], individual["validation"])["mean"]
            kinds.setdefault(kind, {})[seed] = entry
    return kinds


def tables(kinds: Mapping[str, Any]) -> list[Table]:
    """Return for each kind the ways to serve, and where their inputs went."""
    shown: list[Table] = []
    for kind, seeds in kinds.items():
        tasks = list(next(iter(seeds.values()))["known"]["compression"]["test"])
        lines, routed = [], []
        for group, name, title in _names(seeds):
            results = [entry[group][name] for entry in seeds.values() if name in entry[group]]
            mean = percent([one["summary"]["mean"] for one in results])
            worst = percent([one["summary"]["worst"] for one in results])
            valid = percent([one["on validation"] for one in results])
            sent = [one["routed test"] for one in results if "routed test" in one]
            right = percent([sum(one.values()) / len(one) for one in sent]) if sent else ""
            ran = f"{spread(one['ran test'] for one in results)[0]:.2f}" if sent else ""
            known = "no" if group == "rows" else "yes"
            lines.append([title, known, mean, worst, right, ran, valid, f"{len(results)}"])
            if sent:
                routed.append([title, *(percent([one[task] for one in sent], 0) for task in tasks)])
        columns = [
            "model",
            "task known",
            "mean %",
            "worst task %",
            "right head %",
            "tasks run",
            "validation %",
            "seeds",
        ]
        count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        shown.append((f"{KINDS[kind]}, {count}, strict score ÷ individual", columns, lines))
        shown.append((f"Inputs that met their head: {KINDS[kind]}, %", ["model", *tasks], routed))
    return shown


def _names(seeds: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    known = [("known", name, TITLES.get(name, name)) for name in (*KNOWN, "compression")]
    rows = [("rows", row.name, row.title) for row in ROWS]
    return [(g, n, t) for g, n, t in known + rows if any(n in entry[g] for entry in seeds.values())]


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page that says how it was made."""
    return report.markdown(results, tables(results["kinds"]), note=NOTE)


def draw(results: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw all rows as bars, one panel for each kind; return the path."""
    plt, kinds = pyplot(), results["kinds"]
    height = 1 + 0.3 * max(len(_names(seeds)) for seeds in kinds.values())
    figure, panels = plt.subplots(1, len(kinds), figsize=(7.5 * len(kinds), height), squeeze=False)
    for axes, (kind, seeds) in zip(panels[0], kinds.items(), strict=True):
        names = _names(seeds)
        for place, (group, name, _) in enumerate(names):
            summaries = [entry[group][name]["summary"] for entry in seeds.values() if name in entry[group]]
            mean, deviation = spread(100 * one["mean"] for one in summaries)
            colour = "#9aa5b1" if group == "known" or name == "lda" else "#1f6feb"
            axes.barh(place, mean, xerr=deviation, color=colour, capsize=2)
            axes.plot(
                100 * spread(one["worst"] for one in summaries)[0], place, "o", color="#111", markersize=3
            )
            axes.annotate(f"{mean:.1f}", (mean, place), (6, -3), textcoords="offset points", fontsize=7)
        axes.set_yticks(range(len(names)), [title.replace("*", "") for *_, title in names], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 108)
        axes.set_title(f"{KINDS[kind]}; grey: the task is known, or labels are", fontsize=9)
        axes.set_xlabel("strict, % of the individual models; dots: the worst task")
        axes.spines[["top", "right"]].set_visible(False)
    return [save(figure, folder / f"{stem}.png")]
