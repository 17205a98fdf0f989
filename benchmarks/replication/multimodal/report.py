"""Gathers what lies in the cache into one JSON, and shows it as tables."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import page
from benchmarks.page import Table, percent, spread
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Cache
from benchmarks.replication.earlier import publish
from benchmarks.replication.lm.results import by_row, each, names_of
from benchmarks.replication.multimodal.merge import BASE
from benchmarks.replication.multimodal.plots import draw
from benchmarks.replication.multimodal.probes import GROUPS, MEAN, PROBES, groups
from benchmarks.replication.multimodal.questions import SKILLS
from benchmarks.replication.multimodal.rows import COMPOSED, DECOUPLED, JOINT_MODEL, NAIVE, merges
from benchmarks.replication.multimodal.suite import Multimodal

__all__ = ["REFERENCES", "gather", "markdown", "sanity", "tables", "write"]

ALONE = tuple(f"{modality} alone" for modality in SKILLS)
REFERENCES = (BASE, *ALONE, *(row.name for row in COMPOSED))


def write(suite: Multimodal, cache: Cache, options: argparse.Namespace) -> None:
    """Write JSON and tables of what is finished."""
    ways = dict.fromkeys(REFERENCES, DECOUPLED)
    ways |= {row.name: way for way in (DECOUPLED, NAIVE) for row in merges(options.methods, way)}
    seeds = gather(cache, options.seeds, ways)
    page.need(seeds, options.suite)
    found = page.facts(suite.name, suite.facts()) | {
        "work": store.work(cache.root),
        "encoder": store.read(suite.encoder_folder(cache)),
        "seeds": seeds,
    }
    publish(found, f"replication-{suite.name}", cache.root, options, markdown, draw)


def gather(cache: Cache, seeds: Iterable[int], ways: Mapping[str, str]) -> dict[str, Any]:
    """Return seed -> row -> result, of seeds whose specialists were scored, as far as it is finished.

    `ways` are row -> how its specialists were trained.
    """
    gathered = {}
    for seed in seeds:
        rows: dict[str, Any] = {}
        for name, way in ways.items():
            if (result := store.read(cache.result(seed, way, store.folder_name(name)))) is not None:
                config = result.pop("config")["row"]
                rows[name] = result | {"config": config, "groups": groups(result.get("test", {}))}
        if all(name in rows for name in ALONE):
            gathered[str(seed)] = rows
    return gathered


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Return groups of questions, every question, costs, and what must hold."""
    seeds = results["seeds"]
    count = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, test"
    columns = ["method", "mean", *GROUPS, "ARC", "log-likelihood", "scales"]
    lines = [
        [page.named(name, found, seeds), *_groups(found), page.scales(found)]
        for name, found in by_row(seeds).items()
    ]
    shown: list[Table] = [(f"Groups of questions, {count}", columns, lines)]
    shown.append(_questions(seeds, count))
    if curves := _curves(seeds):
        shown.append(("Along the scale, validation", ["method", "seed", "scale", "mean", *MEAN], curves))
    if costs := _costs(seeds):
        shown.append(("What a composition costs", ["method", "s", "peak MB", "stored MB"], costs))
    shown.append(page.checks("What must hold", sanity(seeds)))
    return shown


def _questions(seeds: Mapping[str, Any], count: str) -> Table:
    """Return every question, a column for each row that was asked."""
    names = [name for name in names_of(seeds) if name != BASE]
    lines = [
        [probe.name, *(_cell([one["test"] for one in each(seeds, name)], probe.name) for name in names)]
        for probe in PROBES
    ]
    return f"Every question, {count}", ["question", *names], lines


def _cell(tests: list[dict[str, float]], probe: str) -> str:
    return percent((test[probe] for test in tests), 0) if probe in tests[0] else ""


def _groups(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        percent(one["groups"][group] for one in rows) if group in rows[0]["groups"] else ""
        for group in ("mean", *GROUPS)
    ]
    able = [one["abilities"] for one in rows if "abilities" in one]
    if not able:
        return [*cells, "", ""]
    likelihood = spread(one["likelihood"] for one in able)[0]
    return [*cells, percent(one["accuracy"] for one in able), f"{likelihood:.2f}"]


def _curves(seeds: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, seed, scale, *(f"{100 * found[group]:.1f}" for group in ("mean", *MEAN))]
        for seed, rows in seeds.items()
        for name, row in rows.items()
        for scale, found in row.get("curve", {}).items()
    ]


def _costs(seeds: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for name in names_of(seeds):
        for one in each(seeds, name):
            if "cost" in one:
                peak = f"{one['cost']['peak_bytes'] / 1e6:.0f}"
                lines.append([name, f"{one['cost']['seconds']:.1f}", peak, f"{one['bytes'] / 1e6:.0f}"])
    return lines


def sanity(seeds: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Return check, whether it holds for the mean over seeds, and by what numbers."""
    checks = []
    for modality, row in zip(SKILLS, ALONE, strict=True):
        read = _mean(seeds, row, f"own: name {modality}")
        checks.append((f"the {modality} specialist names digits, ≥ 85 %", read >= 85, f"{read:.1f}"))
        checks += _composed_like_alone(seeds, modality, row)
    if "average" in names_of(seeds):
        best = max(_group(seeds, row, "joint") for row in ALONE)
        composed = _group(seeds, "average", "joint")
        title = "joint questions: the average is above every specialist alone"
        checks.append((title, composed > best, f"{composed:.1f}; {best:.1f}"))
    return checks


def _composed_like_alone(seeds: Mapping[str, Any], modality: str, alone: str) -> list[tuple[str, bool, str]]:
    """Compare a specialist with the composition whose text has its LoRA: on its own inputs they are one."""
    row, own = f"{modality}'s LoRA", [probe.name for probe in PROBES if probe.modalities == (modality,)]
    if row not in names_of(seeds):
        return []
    gap = max(abs(_mean(seeds, row, probe) - _mean(seeds, alone, probe)) for probe in own)
    title = f"composed with its LoRA, {modality}s are read as by the specialist alone, within 1 point"
    return [(title, gap <= 1, f"{gap:.1f}")]


def _mean(seeds: Mapping[str, Any], name: str, probe: str) -> float:
    return 100 * spread(one["test"][probe] for one in each(seeds, name))[0]


def _group(seeds: Mapping[str, Any], name: str, group: str) -> float:
    return 100 * spread(one["groups"][group] for one in each(seeds, name))[0]


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page that says how it was made."""
    suite, encoder = results["suite"], results["encoder"]
    about = [
        f"{suite['validation']} validation and {suite['test']} test items for each kind of joint question, "
        "and shares of it for others. Accuracy in %, mean ± standard deviation over seeds.",
        "",
        "The encoder of pictures reads "
        + ", ".join(f"{100 * value:.1f} % of {kind}s" for kind, value in encoder["accuracy"].items())
        + " by itself.",
        "",
        results["work"],
    ]
    return page.markdown(results, about, tables(results), NOTE)


NOTE = f"""\
Mean: of {", ".join(MEAN)}. An answer is right if the likeliest next token of the whole vocabulary is its
first. Own: what each specialist was trained on, with its own inputs and written words. Skill: what it alone
was taught. Joint: questions about a picture and a sound together. Fused: one digit in a degraded picture and
a degraded sound; degraded: in one of them. Moved: a skill, of the other modality. Text: of written words
alone. ARC: easy questions of school science, the likeliest answer, and the mean log-likelihood of the right
one.

Alone: a specialist as it is, asked about its own modality; of joint questions it does not see the inputs of
others. A modality's LoRA: all projectors and modality LoRAs, with the language LoRA of one specialist alone.
{JOINT_MODEL.capitalize()} (row): one model trained on the questions of both, with as many steps as they have
together, composed of its own parts. Scales: what validation chose, one a seed; with * it lies at an end of
the grid."""
