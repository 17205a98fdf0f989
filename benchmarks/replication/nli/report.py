"""Gathers what lies in the cache into one JSON, and shows it as tables and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.page import Table, pyplot, save
from benchmarks.replication import cache as store
from benchmarks.replication import plots
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
    methods = [*suite.rows(options), *suite.learned_rows(options)]
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
        shown += [_observed(results["observed"], hooks) for hooks in _hooks(results["observed"])]
        shown.append(_falling(results["observed"]))
    return shown


def _hooks(observed: Mapping[str, Any]) -> list[str]:
    return list(next(iter(observed.values()))["omega"])


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


def _observed(observed: Mapping[str, Any], hooks: str) -> Table:
    lambdas = next(iter(observed.values()))["config"]["lambdas"]
    lines = []
    for name, one in observed.items():
        for step, omegas in one["omega"][hooks].items():
            best = lambdas[omegas.index(min(omegas))]
            lines.append(
                [
                    name,
                    step,
                    f"{one['accuracy'][step]:.3f}",
                    *(f"{omega:.5f}" for omega in omegas),
                    f"{best:g}",
                ]
            )
    level = next(iter(observed.values()))["isotropic"][hooks]
    columns = ["task, rate", "step", "accuracy", *(f"λ = {scale:g}" for scale in lambdas), "least at"]
    return f"ω(λ) of each adapter on its own inputs: {hooks} (without structure {level:.5f})", columns, lines


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
        drawn.append(save(_paths(results["observed"]), folder / f"{stem}-observation.png"))
    return drawn


def _paths(observed: Mapping[str, Any]) -> Any:
    """Draw a panel for each choice of hooks: trainings as paths of ω at λ = 1 and accuracy."""
    hooks = list(HOOKS)
    figure, panels = pyplot().subplots(1, len(hooks), figsize=(4.5 * len(hooks), 4.5), squeeze=False)
    for axes, name in zip(panels[0], hooks, strict=True):
        for training, one in observed.items():
            steps = one["omega"][name]
            first = next(iter(steps.values()))[0], one["accuracy"]["0"]
            path = [first] + [(omegas[-1], one["accuracy"][step]) for step, omegas in steps.items()]
            axes.plot(*zip(*path, strict=True), marker=".", linewidth=1, label=training)
        axes.axvline(observed[training]["isotropic"][name], color="#9aa5b1", linewidth=0.8)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("ω at λ = 1 (first point: the first A, at λ = 0)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("accuracy")
    panels[0][-1].legend(frameon=False, fontsize=6)
    return figure
