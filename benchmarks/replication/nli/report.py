"""Gathers what lies in the cache into one JSON, and shows it as tables and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.page import Table, save
from benchmarks.replication import cache as store
from benchmarks.replication import observation, plots
from benchmarks.replication import report as rows
from benchmarks.replication.cache import Cache
from benchmarks.replication.earlier import publish
from benchmarks.replication.nli.merge import REFERENCES
from benchmarks.replication.nli.observation import HOOKS
from benchmarks.replication.nli.suite import Nli

__all__ = ["draw", "gather", "observations", "tables", "write"]


def write(suite: Nli, cache: Cache, options: argparse.Namespace) -> None:
    """Write JSON, tables and pictures of what is finished."""
    kinds, observed = gather(suite, cache, options), observations(suite, cache)
    page.need(kinds or observed, options.suite)
    found = page.facts(suite.name, suite.facts()) | {"kinds": kinds, "observed": observed}
    publish(found, f"replication-{suite.name}", cache.root, options, markdown, draw, "observed")


def markdown(results: Mapping[str, Any]) -> str:
    """Return a page that says how it was made."""
    work = [rows.work(results["kinds"])] if results["kinds"] else []
    return rows.markdown(results, tables(results), *work, note=NOTE)


def gather(suite: Nli, cache: Cache, options: argparse.Namespace) -> dict[str, Any]:
    """Return kind -> seed -> references and methods, as far as they are finished."""
    names = suite.chosen(options.methods)
    methods = [*suite.rows(names), *suite.learned_rows(names)]
    wanted = {
        "ceilings": {name: {} for name in REFERENCES},
        "methods": {row.name: row.facts() for row in methods},
    }
    return rows.finished(suite.tasks, cache, options.seeds, dict.fromkeys(suite.trainings, wanted))


def observations(suite: Nli, cache: Cache) -> dict[str, Any]:
    """Return "task, rate" -> steps, accuracies and ratios of a training's adapters."""
    seen = {
        f"{task}, {training.rate:g}": store.read(suite.observation(cache, task, training))
        for task, training, _ in suite.observations()
    }
    return {name: one for name, one in seen.items() if one}


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Return methods beside references, tasks, what the learned rows say, and the observation."""
    shown = rows.tables(results)
    for seeds in results["kinds"].values():
        shown.append(_learned(seeds))
    if results["observed"]:
        shown += observation.tables(results["observed"])
        shown.append(_falling(results["observed"]))
    return shown


def _learned(seeds: Mapping[str, Any]) -> Table:
    lines = []
    for seed, entry in seeds.items():
        for name, result in entry["methods"].items():
            if "calibration" in result:
                losses = result["calibration"]["loss"]
                values = [value for of in result["coefficients"].values() for value in of.values()]
                lines.append(
                    [
                        name,
                        seed,
                        f"{losses[0]:.5f}",
                        f"{losses[-1]:.5f}",
                        f"{min(values):.3f} … {max(values):.3f}",
                        ", ".join(result["calibration"].get("kept", ())),
                        f"{result['calibration']['seconds']:.0f}",
                    ]
                )
    columns = ["method", "seed", "loss before", "after", "coefficients", "kept", "s"]
    return "Learned coefficients", columns, lines


def _falling(observed: Mapping[str, Any]) -> Table:
    """Return in how many modules the ratio of the last adapter is lower at λ = 1 than on the base."""
    kinds, lines = ("q_proj", "v_proj"), []
    for name, one in observed.items():
        values = zip(one["modules"], list(one["by_module"].values())[-1], strict=True)
        falls = [(module, omegas[-1] < omegas[0]) for module, omegas in values]
        cells = []
        for kind in kinds:
            of_kind = [fall for module, fall in falls if module.endswith(kind)]
            thirds = [of_kind[len(of_kind) * i // 3 : len(of_kind) * (i + 1) // 3] for i in range(3)]
            cells.append(", ".join(f"{sum(third)} of {len(third)}" for third in thirds))
        lines.append([name, *cells])
    title = "Modules in which ω is lower at λ = 1 than at λ = 0: first, middle and last third of the layers"
    return title, ["task, rate", *kinds], lines


NOTE = """\
Accuracy ÷ that of the task's own adapter, mean and worst task. Scales: chosen on validation, screened on
some of it; with * one lies at an end of the grid. Learned coefficients: no labels and no validation; their
inputs are texts of the training sets. Kept: adapters whose ratio does not fall with λ, which keep their
initial coefficients. Accuracy of the observation: on validation items."""


def draw(results: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Draw the bars and heat maps that all suites have, and ratio against quality; return the paths."""
    drawn = plots.draw(results, folder, stem)
    if results["observed"]:
        figure = observation.picture(results["observed"], list(HOOKS))
        drawn.append(save(figure, folder / f"{stem}-observation.png"))
    return drawn
