"""The observation behind NSC: an adapter's null-space ratio on its own inputs, its scale λ, and its quality.

For adapters saved while they are trained: ω(λ), the ratio in the base with λ times this adapter alone. Only
where it falls with λ can coefficients that make it small be good ones, and only where it goes with quality is
it a sign of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks import page
from benchmarks.console import say
from benchmarks.page import Table, pyplot
from benchmarks.replication.cache import Result
from benchmarks.replication.suite import Training
from submerge.calibrate import choose_hooks

__all__ = [
    "EVERYWHERE",
    "LAMBDAS",
    "Hooks",
    "at_step",
    "omegas",
    "picture",
    "publish",
    "saved_steps",
    "tables",
    "title",
    "trainings",
]

LAMBDAS = (0.0, 0.25, 0.5, 1.0)
Hooks = Mapping[str, Callable[[Any, list[str]], list[str]]]
"""What modules are called over which ω is a mean -> which of a model's modules with adapters they are."""
EVERYWHERE: Hooks = {
    "last_quarter": lambda model, names: choose_hooks(model, names, "last_quarter"),
    "all": lambda model, names: names,
}


def trainings(own: Training, tasks: Iterable[str], paces: Sequence[float]) -> list[tuple[str, Training]]:
    """Return each task with a suite's own training, at its rate times each of `paces`."""
    return [(task, replace(own, rate=own.rate * pace)) for task in tasks for pace in paces]


def title(task: str, training: Training) -> str:
    """Return what a training that is followed is called."""
    return f"{task}, {training.rate:g}"


def saved_steps(steps: int) -> list[int]:
    """Return after which steps adapters are saved: each quarter of them, and the middle of the first."""
    return sorted({max(1, steps * eighths // 8) for eighths in (1, 2, 4, 6, 8)})


def at_step(folder: Path, step: int, steps: int) -> Path:
    """Return where the adapter after a step lies, of a training's folder: that of the last in itself."""
    return folder if step == steps else folder / f"step{step}"


def omegas(
    model: Any,
    adapters: Mapping[int, Path],
    data: Mapping[str, Sequence[Mapping[str, torch.Tensor]]],
    hooks: Hooks,
) -> Result:
    """Return the ratios of a training's adapters, by step, on batches of inputs.

    Args:
        model: the base.
        adapters: step -> folder.
        data: ending of a name -> batches; what is said of the first has no ending.
        hooks: over which modules the means are.

    Returns:
        "omega": hooks and ending -> step -> ω at each of `LAMBDAS`; "isotropic": the same -> ω of inputs
        without structure; "modules" and "by_module": step -> ω of each module at each λ, of the first data.
    """
    names = {str(step): folder for step, folder in adapters.items()}

    def ratios(scales: Any) -> Any:
        return submerge.null_space_ratio(model, names, data, hooks=".", scales=scales)

    at_base = ratios(None)
    alone = {
        k: [at_base] + [ratios([scale * (k == j) for j in range(len(names))]) for scale in LAMBDAS[1:]]
        for k in range(len(names))
    }
    values = {
        step: torch.stack([one.values[:, :, k] for one in alone[k]], -1) for k, step in enumerate(names)
    }  # [modules, data, λ]
    result: Result = {"omega": {}, "isotropic": {}, "modules": list(at_base.modules)}
    for j, ending in enumerate(data):
        for title, choose in hooks.items():
            chosen = set(choose(model, list(at_base.modules)))
            at = torch.tensor([name in chosen for name in at_base.modules])
            name = title + ending
            result["omega"][name] = {step: one[at, j].mean(0).tolist() for step, one in values.items()}
            result["isotropic"][name] = at_base.isotropic[at].mean().item()
    return result | {"by_module": {step: one[:, 0].tolist() for step, one in values.items()}}


def tables(observed: Mapping[str, Any], quality: str = "accuracy") -> list[Table]:
    """Return a table for each choice of hooks, of "task, rate" -> what was measured of a training."""
    return [_table(observed, hooks, quality) for hooks in next(iter(observed.values()))["omega"]]


def _table(observed: Mapping[str, Any], hooks: str, quality: str) -> Table:
    lambdas = next(iter(observed.values()))["config"]["lambdas"]
    lines = []
    for name, one in observed.items():
        for step, values in one["omega"][hooks].items():
            best = lambdas[values.index(min(values))]
            cells = [f"{value:.5f}" for value in values]
            lines.append([name, step, f"{one['accuracy'][step]:.3f}", *cells, f"{best:g}"])
    level = next(iter(observed.values()))["isotropic"][hooks]
    columns = ["task, rate", "step", quality, *(f"λ = {scale:g}" for scale in lambdas), "least at"]
    return f"ω(λ) of each adapter on its own inputs: {hooks} (without structure {level:.5f})", columns, lines


def picture(observed: Mapping[str, Any], hooks: Sequence[str], quality: str = "accuracy") -> Any:
    """Return a figure with a panel for each choice of hooks: trainings as paths of ω at λ = 1 and quality."""
    figure, panels = pyplot().subplots(1, len(hooks), figsize=(4.5 * len(hooks), 4.5), squeeze=False)
    for axes, name in zip(panels[0], hooks, strict=True):
        for training, one in observed.items():
            steps = one["omega"][name]
            first = next(iter(steps.values()))[0], one["accuracy"]["0"]
            path = [first] + [(values[-1], one["accuracy"][step]) for step, values in steps.items()]
            axes.plot(*zip(*path, strict=True), marker=".", linewidth=1, label=training)
        axes.axvline(observed[training]["isotropic"][name], color="#9aa5b1", linewidth=0.8)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("ω at λ = 1 (first point: the first A, at λ = 0)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(quality)
    panels[0][-1].legend(frameon=False, fontsize=6)
    return figure


def publish(
    suite: Mapping[str, Any],
    seed: int,
    observed: Mapping[str, Any],
    about: str,
    quality: str,
    cache: Path,
    options: argparse.Namespace,
) -> None:
    """Write JSON, tables and the picture of what was seen of the adapters of a seed.

    `suite` are the suite's facts, `about` says on what ω and quality are measured, and `cache` is the folder
    that reports of `--fast` go to.
    """
    found = page.facts(f"{suite['name']}, adapters while they are trained", suite)
    found |= {"seed": seed, "observed": observed}
    described = [
        f"Adapters of seed {seed}, saved while they are trained, each in the base alone, λ times. {about} "
        "The suite's own adapters have the middle rate. In the picture a line is a training."
    ]
    out, stem = page.out_folder(cache, options), f"replication-{suite['name']}-observation"
    page.write(out, stem, found, page.markdown(found, described, tables(observed, quality), ""))
    drawn = page.save(picture(observed, list(EVERYWHERE), quality), out / f"{stem}.png")
    say(f"wrote in {out}: {stem}.json, {stem}.md, {drawn.name}")
