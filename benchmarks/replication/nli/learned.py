"""Merges whose coefficients, one of each adapter and module, are learned on inputs without labels.

The inputs are the same for all of them: texts of the training sets, whose labels are not read. Nothing is
tuned on validation items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import submerge
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.nli.merge import NliBench
from benchmarks.replication.nli.model import Prompts, load, logits
from benchmarks.replication.nli.rows import Learned
from benchmarks.replication.nli.specialists import like_lengths
from submerge.calibrate import attached
from submerge.store import open_adapter

__all__ = ["run"]

Batches = dict[str, list[dict[str, torch.Tensor]]]
Coefficients = dict[str, dict[str, float]]
"""Module -> adapter -> λ."""
INITIAL = 0.4
"""Of AdaMerging, as of NSC."""


def run(bench: NliBench, row: Learned) -> Result:
    """Return everything about one row: from the cache, or by learning and testing."""

    def make(_: Path, result: Result) -> None:
        with timed(result, "seconds_in_all"):
            model, batches = load(bench.base, bench.base), _batches(bench, row)
            learn = _adamerging if row.entropy else _null_space
            result |= learn(bench, row, model, batches)
            with _merged(bench, model, result["coefficients"]):
                result["test"] = bench.scores_of(model, "test", bench.suite.tasks)
        bench.say(bench.line(row.name, result))

    return cached(bench.place(bench.seed, row.name), bench.config(row.facts()), make)


def _batches(bench: NliBench, row: Learned) -> Batches:
    """Return task -> batches of like lengths, each pair of texts once."""
    batches = {}
    for task in bench.suite.tasks:
        items = Prompts(bench.splits[task].train[-row.inputs :], bench.base)
        drawn = like_lengths([len(one) for one in items.ids], min(row.batch, len(items)), bench.seed)
        batches[task] = [items.batch(next(drawn)) for _ in range(max(1, len(items) // row.batch))]
    return batches


def _null_space(bench: NliBench, row: Learned, model: Any, batches: Batches) -> Result:
    found = submerge.learn_coefficients(
        model,
        dict(zip(bench.suite.tasks, bench.models, strict=True)),
        batches,
        steps=row.steps,
        learning_rate=row.rate,
        **row.settings,
    ).to_dict()
    left_out = ("settings", "inputs", "ratios_by_module")  # the row says it, or they are places or long
    calibration = {name: value for name, value in found.items() if name not in left_out}
    return {"coefficients": calibration.pop("coefficients"), "calibration": calibration}


def _adamerging(bench: NliBench, row: Learned, model: Any, batches: Batches) -> Result:
    """Minimise the mean entropy of each task's own answers; needs the heads, and that tasks are classes."""
    tasks, losses = bench.suite.tasks, []
    with timed(measured := {}), _attached(bench, model) as adapters:
        values = nn.Parameter(torch.full((len(adapters.modules), len(tasks)), INITIAL))
        optimizer = torch.optim.AdamW([values], lr=row.rate, weight_decay=0.0)
        for step in range(row.steps + 1):
            optimizer.zero_grad()
            parts = [
                _entropy(bench, adapters, values, task, batches[task][step % len(batches[task])])
                for task in tasks
            ]
            losses.append(sum(parts) / len(parts))
            if step < row.steps:
                optimizer.step()
        rows = zip(adapters.modules, values.tolist(), strict=True)
        coefficients = {name: dict(zip(tasks, row_of, strict=True)) for name, row_of in rows}
    return {"coefficients": coefficients, "calibration": {"loss": losses, **measured}}


def _entropy(
    bench: NliBench, adapters: Any, values: nn.Parameter, task: str, batch: Mapping[str, torch.Tensor]
) -> float:
    """Return the mean entropy of a batch's answers, after its gradients were added to the values'."""
    with adapters.over(dict(zip(adapters.modules, values, strict=True))):
        spread = torch.distributions.Categorical(logits=logits(adapters.model, batch, bench.answers[task]))
        loss = spread.entropy().mean()
        (loss / len(bench.suite.tasks)).backward()
    return float(loss.detach())


@contextmanager
def _attached(bench: NliBench, model: Any) -> Iterator[Any]:
    opened = {t: open_adapter(str(folder)) for t, folder in zip(bench.suite.tasks, bench.models, strict=True)}
    with attached(model.requires_grad_(False), opened) as adapters:
        yield adapters


@contextmanager
def _merged(bench: NliBench, model: Any, coefficients: Coefficients) -> Iterator[None]:
    """Run what is inside with the adapters at these coefficients."""
    scales = {
        name: torch.tensor([of[task] for task in bench.suite.tasks]) for name, of in coefficients.items()
    }
    with _attached(bench, model) as adapters, adapters.over(scales):
        yield
