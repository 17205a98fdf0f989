"""Gathers what lies in the cache into one JSON, and shows it as tables and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.page import Table, percent, pyplot, save, spread
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache, Result
from benchmarks.replication.calibrated import calibrated_rows
from benchmarks.replication.earlier import publish
from benchmarks.replication.lm.results import by_row, each
from benchmarks.replication.methods import rows, sequence_rows
from benchmarks.replication.plots import bars
from benchmarks.replication.report import TITLES
from benchmarks.replication.scores import summary
from benchmarks.replication.skills.merge import LORA
from benchmarks.replication.skills.null_space import HOOKS, NULL_SPACE
from benchmarks.replication.skills.routed import MASS, MASS_ROWS
from benchmarks.replication.skills.suite import Skills

__all__ = ["gather", "markdown", "sanity", "tables", "write"]

GAIN = 10
"""Points that an adapter must gain on its skill for the skill to say anything about merges."""


def write(suite: Skills, cache: Cache, options: argparse.Namespace) -> None:
    """Write JSON, tables and the picture of what is finished."""
    seeds = gather(suite, cache, options.seeds)
    page.need(seeds, options.suite)
    found = page.facts(suite.name, suite.facts()) | {"work": store.work(cache.root), "seeds": seeds}
    publish(found, f"replication-{suite.name}", cache.root, options, markdown, draw)


def draw(results: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw all rows as bars; return the path."""
    return [save(bars(pyplot(), _scored(results["seeds"])), folder / f"{stem}-bars.png")]


def gather(suite: Skills, cache: Cache, seeds: Iterable[int]) -> dict[str, Any]:
    """Return seed -> row -> result, of each seed whose adapters were scored.

    Rows of adapters that were trained in another way than today's are left out.
    """
    finished: dict[str, Any] = {}
    base = store.read(cache.root / "base-results")
    for seed in seeds:
        markers = [store.read(cache.specialist(seed, LORA, skill.name)) for skill in suite.skills]
        trained = [marker["config"] for marker in markers if marker]
        merges = (*rows(LORA, rank=suite.training.rank), *calibrated_rows(LORA), *sequence_rows(LORA))
        names = ("individual", *(row.name for row in merges), NULL_SPACE)
        places = {name: cache.result(seed, LORA, name) for name in names}
        places |= {name: cache.served(seed, LORA, name) for name in MASS_ROWS}
        read = {name: store.read(place) for name, place in places.items()}
        current = {
            name: result for name, result in read.items() if result and result["config"]["trained"] == trained
        }
        if base and "individual" in current:
            finished[str(seed)] = _beside_individual({"base": base, **current})
    return finished


def _beside_individual(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return row -> result, with a summary of those that were tested."""
    own = results["individual"]["test"]
    return {
        name: one | ({"summary": summary(one["test"], own)} if "test" in one else {})
        for name, one in results.items()
    }


def _scored(seeds: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return row -> its results, of rows with a test."""
    return {name: results for name, results in by_row(seeds).items() if "summary" in results[0]}


def tables(seeds: Mapping[str, Any]) -> list[Table]:
    """Return the methods, the skills, MASS's choices, the null-space ratios, and what must hold."""
    count = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
    shown = [_methods(f"Merges, {count}, score ÷ individual", seeds), _skills(_scored(seeds))]
    if served := each(seeds, MASS):
        shown.append(_choices(served, seeds))
    if curves := each(seeds, NULL_SPACE):
        shown += [_curve(hooks, curves[0]) for hooks in HOOKS]
    return [*shown, page.checks("What must hold", sanity(seeds))]


def _methods(title: str, seeds: Mapping[str, Any]) -> Table:
    lines = []
    for name, results in _scored(seeds).items():
        costs = [one["cost"]["seconds"] for one in results if "cost" in one]
        lines.append(
            [
                page.named(TITLES.get(name, name), results, seeds),
                percent(one["summary"]["mean"] for one in results),
                percent(one["summary"]["worst"] for one in results),
                ", ".join(dict.fromkeys(one["summary"]["worst_task"] for one in results)),
                page.scales(results),
                f"{costs[0]:.1f}" if costs else "",
                f"{results[0]['bytes'] / 1e6:.1f}" if "bytes" in results[0] else "",
            ]
        )
    return title, ["method", "mean %", "worst skill %", "which", "scales", "s", "stored MB"], lines


def _skills(scored: Mapping[str, list[dict[str, Any]]]) -> Table:
    skills = list(scored["individual"][0]["test"])
    own = [percent(one["test"][skill] for one in scored["individual"]) for skill in skills]
    lines = [["individual, score itself", *own]]
    for name, results in scored.items():
        shares = [percent((one["summary"]["normalised"][skill] for one in results), 0) for skill in skills]
        lines.append([TITLES.get(name, name), *shares])
    return "Skills, % of individual", ["method", *skills], lines


def _choices(served: Sequence[Result], seeds: Mapping[str, Any]) -> Table:
    """Return how often MASS finds the skill of a prompt, and what it scores, skill unknown and named."""
    rows: list[tuple[str, list[Mapping[str, float]]]] = []
    for name, row in MASS_ROWS.items():
        results = each(seeds, name)
        for count in sorted(row.inputs if results else ()):
            title = f"routed to their skill: {row.title}, {count} of each"
            rows.append((title, [one["routed_by"][str(count)] for one in results]))
        if results and not row.inputs:
            rows.append((f"routed to their skill: {row.title}", [one["routed"] for one in results]))
        if results:
            given = f", {row.inputs[-1]} of each" if row.inputs else ""
            rows.append((f"score: {row.title}{given}", [one["test"] for one in results]))
    rows.append(("score, skill named", [one["named"] for one in served]))
    skills = list(served[0]["routed"])
    lines = [[title, *(percent(one[skill] for one in shares) for skill in skills)] for title, shares in rows]
    return "MASS, %", ["", *skills], lines


def _curve(hooks: str, result: Mapping[str, Any]) -> Table:
    curve = result[hooks]
    columns = ["adapter", *(f"λ = {scale:g}" for scale in curve["scales"])]
    lines = [[name, *(f"{value:.5f}" for value in row)] for name, row in curve["values"].items()]
    return f"Null-space ratio ω(λ) on each adapter's own prompts, first seed: {HOOKS[hooks]}", columns, lines


def sanity(seeds: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Return check, whether it holds for the mean over seeds, and by what numbers."""
    base, own = each(seeds, "base"), each(seeds, "individual")
    gains = {
        skill: 100 * spread(o["test"][skill] - b["test"][skill] for o, b in zip(own, base, strict=True))[0]
        for skill in own[0]["test"]
    }
    small = min(gains, key=lambda skill: gains[skill])
    title = f"individual − base ≥ {GAIN} points on every skill"
    checks = [(title, gains[small] >= GAIN, f"{small}: {gains[small]:.1f}")]
    if served := each(seeds, MASS):
        share = 100 * spread(value for one in served for value in one["routed"].values())[0]
        checks.append(("MASS finds the skill of 95 % of the prompts", share >= 95, f"{share:.1f} %"))
    return checks


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page that says how it was made."""
    suite = results["suite"]
    about = [
        f"SmolLM2-135M-Instruct, a LoRA of rank {suite['training']['rank']} on {', '.join(suite['targets'])} "
        f"for each skill, {suite['training']['steps']} steps of {suite['training']['batch']}. "
        f"{suite['validation']} validation and {suite['test']} test prompts a skill, answered by greedy "
        "decoding. Mean ± standard deviation over seeds.",
        "",
        results["work"],
    ]
    return page.markdown(results, about, tables(results["seeds"]), _note(suite))


def _note(suite: Mapping[str, Any]) -> str:
    metrics = ", ".join(f"{name} {about['metric']}" for name, about in suite["skills"].items())
    return (
        f"Metrics: {metrics}; of several references the best counts. Scales: what validation chose, one a "
        "seed; with * it lies at an end of the grid. s: `submerge merge` as a process, from the start of "
        "Python on. Stored: the weights that come out. mass: the eight adapters under `submerge.load`, which "
        "finds the skill of each prompt by itself: "
        + "; ".join(f"{name}, {row.title}" for name, row in MASS_ROWS.items())
        + "."
    )
