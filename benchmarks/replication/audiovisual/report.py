"""Gathers what lies in the cache into one JSON, and shows it as tables and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import page
from benchmarks.page import Table, percent, spread
from benchmarks.replication import cache as store
from benchmarks.replication.audiovisual import plots
from benchmarks.replication.audiovisual.probes import GROUPS, MEAN, groups
from benchmarks.replication.audiovisual.rows import CEILINGS, INDIVIDUAL, NOTHING
from benchmarks.replication.audiovisual.suite import AudioVisual
from benchmarks.replication.cache import Cache
from benchmarks.replication.earlier import publish
from benchmarks.replication.lm.pretrain import PASS
from benchmarks.replication.lm.results import each, names_of

__all__ = ["gather", "markdown", "sanity", "tables", "write"]

TITLES = {"decoupled": "Language LoRA and modality LoRA (decoupled)", "naive": "One LoRA (naive)"}


def write(suite: AudioVisual, cache: Cache, options: argparse.Namespace) -> None:
    """Write JSON, tables and pictures of what is finished."""
    ways = gather(suite, cache, options.seeds, [row.name for row in suite.rows(options)])
    page.need(ways, options.suite)
    found = page.facts(suite.name, suite.facts()) | {
        "work": store.work(cache.root),
        "lm": store.read(suite.lm_folder(cache)),
        "encoders": {slot: store.read(suite.encoder_folder(cache, slot)) for slot in suite.facts()["senses"]},
        "ways": ways,
    }
    publish(found, f"replication-{suite.name}", cache.root, options, markdown, plots.draw)


def gather(suite: AudioVisual, cache: Cache, seeds: Iterable[int], names: Sequence[str]) -> dict[str, Any]:
    """Return way -> seed -> row -> result, as far as all is finished but methods."""
    ways: dict[str, Any] = {}
    for way in suite.trainings:
        for seed in seeds:
            folder = cache.root / f"seed{seed}" / f"{way}-results"
            rows: dict[str, Any] = {}
            for name in (*CEILINGS, *names):
                if (result := store.read(folder / store.folder_name(name))) is not None:
                    config = result.pop("config")["row"]
                    rows[name] = result | {"config": config, "groups": groups(result["test"])}
            if all(name in rows for name in CEILINGS):
                ways.setdefault(way, {})[str(seed)] = rows
    return ways


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Return for each way: groups of questions, costs, and what must hold."""
    shown: list[Table] = []
    for way, seeds in results["ways"].items():
        columns = ["method", "mean", *GROUPS, "scales"]
        lines = []
        for name in names_of(seeds):
            rows = each(seeds, name)
            cells = [
                percent(one["groups"][group] for one in rows) if group in rows[0]["groups"] else ""
                for group in ("mean", *GROUPS)
            ]
            lines.append([page.named(name, rows, seeds), *cells, page.scales(rows)])
        shown.append((f"{TITLES[way]}, {len(seeds)} seed{'s' * (len(seeds) > 1)}, test", columns, lines))
        if costs := _costs(seeds):
            shown.append(("What a merge costs", ["method", "s", "peak MB", "stored MB"], costs))
        shown.append(page.checks(f"What must hold: {way}", sanity(results["lm"], seeds)))
    return shown


def _costs(seeds: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for name in names_of(seeds):
        for one in each(seeds, name):
            if "cost" in one:
                cost = one["cost"]
                peak = f"{cost['peak_bytes'] / 1e6:.0f}"
                lines.append([name, f"{cost['seconds']:.1f}", peak, f"{one['bytes'] / 1e6:.2f}"])
    return lines


def sanity(lm: Mapping[str, Any], seeds: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Return check, whether it holds for the mean over seeds, and by what numbers."""
    weakest = min(lm["skills"], key=lambda skill: lm["skills"][skill])
    known = lm["skills"][weakest]
    title = f"the LM knows its text, each skill ≥ {100 * PASS:.0f} %"
    checks = [(title, known >= PASS, f"{weakest}: {100 * known:.1f}")]
    for ending, what in ((" alone", "specialist alone"), ("'s LoRA", "specialist's LoRA for all text")):
        singles = [name for name in CEILINGS if name.endswith(ending)]
        if "average" in names_of(seeds):
            joint = {name: _mean(seeds, name, "joint") for name in (*singles, "average")}
            best = max(singles, key=lambda name: joint[name])
            title = f"joint questions: the average is above every {what}"
            numbers = f"{joint['average']:.1f}; {best}: {joint[best]:.1f}"
            checks.append((title, joint["average"] > joint[best], numbers))
    skilled, unskilled = (_mean(seeds, name, "new") for name in (INDIVIDUAL, NOTHING))
    title = "new skills: the specialists have them, the LM does not"
    checks.append((title, skilled - unskilled >= 50, f"{skilled:.1f}; {unskilled:.1f}"))
    return checks


def _mean(seeds: Mapping[str, Any], name: str, group: str) -> float:
    return 100 * spread(one["groups"][group] for one in each(seeds, name))[0]


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page that says how it was made."""
    suite = results["suite"]
    read = [
        f"{100 * one['accuracy']['test']['clean']:.1f} % of {slot} "
        f"({100 * one['accuracy']['test']['degraded']:.1f} % degraded)"
        for slot, one in results["encoders"].items()
    ]
    about = [
        f"{suite['validation']} validation and {suite['test']} test items for each kind of question. "
        "Accuracy in %, mean ± standard deviation over seeds.",
        "",
        f"Encoders read {', '.join(read)} by themselves.",
        "",
        results["work"],
    ]
    return page.markdown(results, about, tables(results), NOTE)


NOTE = f"""\
Mean: of {", ".join(MEAN)}. Own: what the LM knows about words, asked of one input. New: the skill that
each specialist was trained for and the LM was not taught. Joint: questions about image and audio together.
Pairs: about points and one other. Three: all are there, two are asked about. Degraded: the number in one
noisy input; fused: in a noisy image and a noisy sound of the same number. Words: one input and one number in
words. Text: words alone. Moved: the new skill, asked of another modality than it was trained for.

Alone: a specialist as it is, which sees one modality; inputs of the others are left out. A specialist's LoRA:
for all text, with all projectors and modality LoRAs. Individual: each specialist on its own questions. Joint
(row): one model trained on the questions of all three, with as many steps as the specialists together.
Scales: what validation chose, one a seed; with * it lies at an end of the grid."""
