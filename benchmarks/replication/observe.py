"""Follows adapters of a suite on an encoder while they are trained: null-space ratio and quality, by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.console import Say, silent
from benchmarks.replication import observation, train
from benchmarks.replication.cache import Cache, Result, cached, timed
from benchmarks.replication.heads import Head
from benchmarks.replication.rows import seed_of
from benchmarks.replication.scores import Scorer
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Suite, Training

__all__ = ["ABOUT", "QUALITY", "follow", "trainings"]

INPUTS = 64
BATCH = 16
ABOUT = f"ω is measured on {INPUTS} validation inputs, quality on all of them."
QUALITY = "accuracy, or correlation"


def trainings(suite: Suite) -> list[tuple[str, Training]]:
    """Return the observed tasks, each with its trainings."""
    tasks = [task for task in suite.observed if task in suite.tasks]
    return observation.trainings(suite.trainings["lora"], tasks, suite.paces)


def follow(
    suite: Suite, cache: Cache, split: Split, head: Head, training: Training, seed: int, say: Say = silent
) -> Result:
    """Train an adapter, unless the cache has what was seen of it; return its ratios and scores by step."""
    saved = observation.saved_steps(training.steps)
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
