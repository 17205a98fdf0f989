"""Gathers what lies in the cache into one JSON, and shows it as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import page
from benchmarks.page import Table, percent, spread
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache
from benchmarks.replication.calibrated import calibrated_rows
from benchmarks.replication.ceilings import NAMES
from benchmarks.replication.methods import rows, sequence_rows
from benchmarks.replication.scores import summary
from benchmarks.replication.suite import Suite

__all__ = ["KINDS", "finished", "gather", "markdown", "sanity", "tables", "work"]

TITLES = {
    "base": "base",
    "individual": "individual (perfect routing)",
    "compression": "compressed, task known (TSV-C)",
    "lda_router": "individual, LDA router",
}
KINDS = {"full": "full fine-tunes", "lora": "LoRA adapters"}


Wanted = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Ceilings and methods -> rows -> the facts that their results must have been made with."""


def gather(suite: Suite, cache: Cache, seeds: Sequence[int], names: Sequence[str] | None) -> dict[str, Any]:
    """Return kind -> seed -> ceilings and methods, as far as they are finished.

    What was made with other settings than today's is left out; `outdated` names it.
    """
    wanted = {
        kind: {
            "ceilings": {name: {} for name in NAMES},
            "methods": {
                row.name: row.facts()
                for row in (
                    *rows(kind, names, training.rank),
                    *sequence_rows(kind, names),
                    *calibrated_rows(kind, names),
                )
            },
        }
        for kind, training in suite.trainings.items()
    }
    return finished(suite.tasks, cache, seeds, wanted)


def finished(
    tasks: Sequence[str], cache: Cache, seeds: Sequence[int], wanted: Mapping[str, Wanted]
) -> dict[str, Any]:
    """Return kind -> seed -> wanted rows, of the seeds that have all ceilings."""
    kinds: dict[str, Any] = {}
    for kind, groups in wanted.items():
        for seed in seeds:
            entry = _entry(tasks, cache, kind, seed, groups)
            if len(entry["ceilings"]) == len(groups["ceilings"]):
                _summarise(entry)
                kinds.setdefault(kind, {})[str(seed)] = entry
    return kinds


def _entry(tasks: Sequence[str], cache: Cache, kind: str, seed: int, wanted: Wanted) -> dict[str, Any]:
    """Return how models were trained, and the results of the wanted rows, whose facts are given."""
    trained = {task: store.read(cache.specialist(seed, kind, task)) for task in tasks}
    configs = [marker["config"] for marker in trained.values() if marker]
    entry: dict[str, Any] = {"trained": trained, "ceilings": {}, "methods": {}, "outdated": []}
    for group, rows_of in wanted.items():
        for name, row_facts in rows_of.items():
            if (result := store.read(cache.result(seed, kind, name))) is None:
                continue
            if store.current(result, row_facts, configs):
                entry[group][name] = result | {"config": result["config"]["row"]}
            else:
                entry["outdated"].append(name)
    return entry


def _summarise(entry: dict[str, Any]) -> None:
    """Put scores beside the individual models' into all results, those of peers too."""
    individual = entry["ceilings"]["individual"]["test"]
    for result in (*entry["ceilings"].values(), *entry["methods"].values()):
        for scored in (result, *result.get("parity", {}).values()):
            if "test" in scored:
                scored["summary"] = summary(scored["test"], individual)


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Return for each kind: methods beside ceilings, tasks, peers; and what must hold."""
    shown: list[Table] = []
    for kind, seeds in results["kinds"].items():
        shown.append(_methods(kind, seeds))
        shown.append(_tasks(kind, seeds))
        if peers := _peers(seeds):
            columns = ["method", "peer", "submerge %", "peer %", "peer s, in memory"]
            shown.append((f"The same merge by peers: {KINDS[kind]}", columns, peers))
        shown.append(page.checks(f"What must hold: {KINDS[kind]}", sanity(seeds)))
    return shown


def _each(seeds: Mapping[str, Any], group: str, name: str) -> list[dict[str, Any]]:
    return [entry[group][name] for entry in seeds.values() if name in entry[group]]


def _names(seeds: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return group, name and title of every row, ceilings first."""
    groups = {
        group: dict.fromkeys(name for entry in seeds.values() for name in entry[group])
        for group in ("ceilings", "methods")
    }
    return [(group, name, TITLES.get(name, name)) for group, names in groups.items() for name in names]


def _methods(kind: str, seeds: Mapping[str, Any]) -> Table:
    lines = []
    for group, name, title in _names(seeds):
        results = _each(seeds, group, name)
        mean = percent(one["summary"]["mean"] for one in results)
        worst = percent(one["summary"]["worst"] for one in results)
        costs = [one["cost"] for one in results if "cost" in one]
        seconds = f"{spread(c['seconds'] for c in costs)[0]:.1f}" if costs else ""
        peak = f"{max(c['peak_bytes'] for c in costs) / 1e6:.0f}" if costs else ""
        stored = f"{results[0]['bytes'] / 1e6:.1f}" if "bytes" in results[0] else ""
        lines.append(
            [page.named(title, results, seeds), mean, worst, page.scales(results), seconds, peak, stored]
        )
    columns = ["method", "mean %", "worst task %", "scales", "s", "peak MB", "stored MB"]
    return (
        f"{KINDS[kind]}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, score ÷ individual",
        columns,
        lines,
    )


def _tasks(kind: str, seeds: Mapping[str, Any]) -> Table:
    tasks = list(next(iter(seeds.values()))["ceilings"]["individual"]["test"])
    lines = [
        ["individual, score itself"]
        + [
            percent(one["test"][task] for one in _each(seeds, "ceilings", "individual"))  # not normalised
            for task in tasks
        ]
    ]
    for group, name, title in _names(seeds):
        results = _each(seeds, group, name)
        lines.append(
            [title, *(percent((one["summary"]["normalised"][task] for one in results), 0) for task in tasks)]
        )
    return f"Tasks: {KINDS[kind]}, % of individual", ["method", *tasks], lines


def _peers(seeds: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for _, name, _ in (row for row in _names(seeds) if row[0] == "methods"):
        results = [one for one in _each(seeds, "methods", name) if one.get("parity")]
        for peer in dict.fromkeys(peer for one in results for peer in one["parity"]):
            theirs = [one["parity"][peer] for one in results if peer in one["parity"]]
            fine = [one for one in theirs if "summary" in one]
            ours = percent(one["summary"]["mean"] for one in results if peer in one["parity"])
            label = peer + (f" {fine[0]['combination']}" if fine and "combination" in fine[0] else "")
            if not fine:
                lines.append([name, label, ours, "failed", ""])
                continue
            mean = percent(one["summary"]["mean"] for one in fine)
            seconds = f"{spread(one['seconds'] for one in fine)[0]:.1f}"
            lines.append([name, label, ours, mean, seconds])
    return lines


def sanity(seeds: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Return check, whether it holds for the mean over seeds, and by what numbers."""
    base, own = (_each(seeds, "ceilings", name) for name in ("base", "individual"))
    gaps = {
        task: 100 * spread(o["test"][task] - b["test"][task] for o, b in zip(own, base, strict=True))[0]
        for task in own[0]["test"]
    }
    least = min(gaps, key=lambda task: gaps[task])
    checks = [
        (
            "individual − base ≥ 10 points on every task",
            gaps[least] >= 10,
            f"{least}: {gaps[least]:.1f}",
        )
    ]
    if small := _each(seeds, "ceilings", "compression"):
        known = 100 * spread(one["summary"]["mean"] for one in small)[0]
        checks.append(("compression with the known task keeps 98 %", known >= 98, f"{known:.1f} %"))
    if sums := _each(seeds, "methods", "task_arithmetic"):
        above = 100 * (
            spread(s["summary"]["mean"] for s in sums)[0] - spread(b["summary"]["mean"] for b in base)[0]
        )
        checks.append(("task arithmetic is above the base", above > 0, f"{above:+.1f} points"))
    return checks


def work(kinds: Mapping[str, Any]) -> str:
    """Return how long the work took, in minutes of one process; several run at once."""
    sentences = ["Work."]
    for kind, seeds in kinds.items():
        trained = [one["seconds"] for entry in seeds.values() for one in entry["trained"].values() if one]
        merged = [
            one["seconds_in_all"]
            for entry in seeds.values()
            for group in ("ceilings", "methods")
            for one in entry[group].values()
            if "seconds_in_all" in one
        ]
        sentences.append(
            f"{KINDS[kind]}: {len(trained)} trained in {sum(trained) / 60:.0f} min, {len(merged)} rows "
            f"merged, tuned and scored in {sum(merged) / 60:.0f} min, both of one process."
        )
    return " ".join(sentences)


def markdown(results: Mapping[str, Any], shown: Sequence[Table], *more: str, note: str = "") -> str:
    """Return a page that says how it was made, with paragraphs `more` above its tables."""
    suite = results["suite"]
    about = [
        f"Tasks: {', '.join(suite['tasks'])}. At most {suite['validation']} validation and {suite['test']} "
        "test items a task. Mean ± standard deviation over seeds."
    ]
    for paragraph in more:
        about += ["", paragraph]
    return page.markdown(results, about, shown, note or NOTE)


NOTE = (
    "Scales: what validation chose, one a seed; with * it lies at an end of the grid. s and peak MB: "
    "`submerge merge` as a process, from the start of Python on. Stored: the weights that come out. "
    "Compressed: each update cut to 1/T of its rank, the task known. LDA router: each input goes to the "
    "individual model of the task that a discriminant on base features names; a wrong task is a wrong "
    "answer. Merges are used with the task's own head. Peers do the merge at the scale that was chosen "
    "for Submerge."
)
