"""What decides about a mixture of projectors (CPM), on validation items: τ, and how images are compared.

A first look needs no pass of the language model: each image's share of its own task's projector, and for how
many images that is the largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

import submerge
from benchmarks.replication.cache import Result, cached
from benchmarks.replication.continual.merge import ContinualBench
from benchmarks.replication.continual.questions import model_inputs
from benchmarks.replication.continual.rows import CONTINUAL_ROWS, MIXED
from benchmarks.replication.continual.scores import final

__all__ = ["SETTINGS", "TEMPERATURES", "sweep"]

TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0)
COSINE = {"score": "prototypes"}
SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"prototypes": 4},
    {"key": "text"},
    {"key": "both"},
    COSINE,
    {"centred": False, **COSINE},
    {"pooling": "position", **COSINE},
    {"prototypes": 4, **COSINE},
    {"prototypes": 4, "centred": False, **COSINE},
    {"prototypes": 16, "centred": False, **COSINE},
    {"key": "text", **COSINE},
    {"key": "both", **COSINE},
)
"""Of the mixture, beside its defaults: how images are compared with prototypes."""
LPM_MIXED = next(row for row in CONTINUAL_ROWS if row.state is not None and row.projectors == MIXED)
AVERAGE_MIXED = next(row for row in CONTINUAL_ROWS if row.name == f"average-{MIXED}")


def sweep(bench: ContinualBench) -> Result:
    """Return shares by settings and temperature, and accuracies by temperature."""

    def make(part: Any, result: Result) -> None:
        result["shares"] = {}
        for settings in SETTINGS:
            row = replace(AVERAGE_MIXED, mix=settings)
            out = bench.merge_tasks(row, None, part, bench.suite.tasks)
            name = ", ".join(f"{key} {value}" for key, value in settings.items()) or "default"
            result["shares"][name] = {str(t): _shares(bench, out, t) for t in TEMPERATURES}
            bench.say(f"{name}: {result['shares'][name]}")
        result["accuracy"] = {}
        out = bench.merge_tasks(LPM_MIXED, 1.0, part, bench.suite.tasks)
        for temperature in TEMPERATURES:
            model = submerge.load(out, temperature=temperature, key="image")
            scores = bench.scorer.scores(model, "validation", bench.suite.tasks)
            result["accuracy"][str(temperature)] = scores
            bench.say(f"τ {temperature}: {100 * final([scores]):.1f}")

    facts = {"sweep": [dict(one) for one in SETTINGS], "temperatures": list(TEMPERATURES)}
    return cached(bench.place("sweep"), bench.config(facts), make)


@torch.inference_mode()
def _shares(bench: ContinualBench, out: Any, temperature: float) -> dict[str, float]:
    """Return the mean share of the own task's projector, and how often it is the largest."""
    model: Any = submerge.load(out, temperature=temperature)
    means, right = [], []
    for task in bench.suite.tasks:
        shares = model.shares(**model_inputs(bench.scorer.questions[task, "validation"]))
        own = _number(model.projectors, task)
        means.append(shares[:, own].mean().item())
        right.append((shares.argmax(1) == own).float().mean().item())
    return {"share": round(sum(means) / len(means), 4), "leading": round(sum(right) / len(right), 4)}


def _number(projectors: Sequence[Sequence[str]], task: str) -> int:
    return next(number for number, tasks in enumerate(projectors) if task in tasks)
