"""Follows adapters of a suite on an encoder while they are trained: null-space ratio and quality, by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import page
from benchmarks.console import Say, silent
from benchmarks.replication import observation, train
from benchmarks.replication.cache import Cache, Result, cached, timed
from benchmarks.replication.heads import Head
from benchmarks.replication.rows import seed_of
from benchmarks.replication.scores import Scorer
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Suite, Training

__all__ = ["draw", "follow", "markdown", "name", "trainings"]

INPUTS = 64
BATCH = 16
PARTS = 4
"""Adapters are saved after each of so many parts of a training, and in the middle of the first."""
QUALITY = "accuracy, or correlation"


def trainings(suite: Suite) -> list[tuple[str, Training]]:
    """Return the observed tasks, each with its trainings."""
    own = suite.trainings["lora"]
    tasks = [task for task in suite.observed if task in suite.tasks]
    return [(task, replace(own, rate=own.rate * pace)) for task in tasks for pace in suite.paces]


def name(task: str, training: Training) -> str:
    """Return what a training is called."""
    return f"{task}, {training.rate:g}"


def follow(
    suite: Suite, cache: Cache, split: Split, head: Head, training: Training, seed: int, say: Say = silent
) -> Result:
    """Train an adapter, unless the cache has what was seen of it; return its ratios and scores by step."""
    quarters = [training.steps * part // PARTS for part in range(1, PARTS + 1)]
    saved = [max(1, quarters[0] // 2), *quarters]
    config: dict[str, Any] = suite.home.facts() | {"task": split.task, "seed": seed}
    config |= {"training": training.config(), "steps": saved, "inputs": INPUTS}
    config |= {"lambdas": list(observation.LAMBDAS), "hooks": list(observation.EVERYWHERE)}

    def make(part: Path, measured: Result) -> None:
        adapters = {step: part / f"step{step}" for step in saved}
        with timed(measured):
            _train(suite, cache, split, head, training, seed, adapters, say)
        with timed(measured, "seconds_in_all"):
            measured |= _measured(suite, cache, split, head, adapters)

    folder = cache.root / f"seed{seed}" / "observation" / f"{split.task}-{training.rate:g}"
    return cached(folder, config, make)


def _train(
    suite: Suite,
    cache: Cache,
    split: Split,
    head: Head,
    training: Training,
    seed: int,
    adapters: Mapping[int, Path],
    say: Say,
) -> None:
    draw = seed_of(seed, "lora", split.task)
    torch.manual_seed(draw)
    model = train.untrained(suite.domain, cache.base, training)
    items = suite.domain.items(split.train, cache.base, split.kind)

    def after(step: int) -> None:
        if step in adapters:
            model.save_pretrained(adapters[step])

    train.fit(suite.domain, model, items, head, training, draw, say, after)


def _measured(suite: Suite, cache: Cache, split: Split, head: Head, adapters: Mapping[int, Path]) -> Result:
    """Return the ratios on the first validation inputs, and the scores on all of them, also of the base."""
    domain, base = suite.domain, suite.domain.load(cache.base, cache.base)
    items = domain.items(split.validation[:INPUTS], cache.base, split.kind)
    count = len(items)
    batches = [items.batch(list(range(at, min(at + BATCH, count)))) for at in range(0, count, BATCH)]
    found = observation.omegas(base, adapters, {"": batches}, observation.EVERYWHERE)
    scorer = Scorer(domain, {split.task: split}, {split.task: head}, cache.base, 0)
    places = {0: cache.base} | dict(adapters)
    scores = {
        step: scorer.score(domain.load(place, cache.base), "validation", split.task)
        for step, place in places.items()
    }
    return found | {"accuracy": scores}


def markdown(results: Mapping[str, Any]) -> str:
    """Return the page: a table for each choice of hooks."""
    about = [
        f"Adapters of seed {results['seed']}, saved while they are trained, each in the base alone, λ times. "
        f"ω is measured on {INPUTS} validation inputs, quality on all of them. The suite's own adapters have "
        "the middle rate. In the picture a line is a training."
    ]
    return page.markdown(results, about, observation.tables(results["observed"], QUALITY), "")


def draw(results: Mapping[str, Any], out: Path, stem: str) -> Path:
    """Draw ratio against quality; return the path."""
    figure = observation.picture(results["observed"], list(observation.EVERYWHERE), QUALITY)
    return page.save(figure, out / f"{stem}.png")
