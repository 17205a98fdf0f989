"""The steps of the suite continual-6: train, merge and report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.console import say
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache
from benchmarks.replication.continual import encoder, report
from benchmarks.replication.continual.encoder import EncodedPart
from benchmarks.replication.continual.merge import REFERENCES, RULES, ContinualBench
from benchmarks.replication.continual.specialists import train
from benchmarks.replication.continual.suite import ContinualSuite
from benchmarks.replication.continual.tasks import TASKS
from benchmarks.replication.jobs import quiet, run_all
from benchmarks.replication.lm.pretrain import pretrain

__all__ = ["STEPS"]

Parts = dict[str, EncodedPart]


def _train(suite: ContinualSuite, cache: Cache, options: argparse.Namespace) -> None:
    """Pretrain LM and encoder, then train on each task, on all, and on one after another."""
    quiet(options.threads)
    data = os.environ.get("SUBMERGE_DATA")
    if data is None:
        raise SystemExit("no data: set SUBMERGE_DATA to the folder of data")
    pretrain(suite.pretraining, suite.lm_folder(cache), say, suite.least)
    encoder.pretrain(Path(data), cache.root / "encoder", suite.encoder_steps)
    sizes = {"train": suite.train_items, "validation": suite.validation, "test": suite.test}
    for task in TASKS:
        if task.name in suite.orders[0]:
            place = suite.task_folder(cache, task.name)
            encoder.encode(task, Path(data), cache.root / "encoder", place, sizes)
    jobs = [(seed, what) for seed in range(options.seeds) for what in (*suite.orders[seed], *_LONG)]
    run_all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _train_one(
    suite: ContinualSuite, cache: Cache, options: argparse.Namespace, seed: int, what: str
) -> None:
    quiet(options.threads)
    lm, folder = suite.lm_folder(cache), cache.root / f"seed{seed}"
    parts = {task: parts["train"] for task, parts in suite.parts(cache).items()}
    _LONG.get(what, _individual)(suite, lm, parts, folder, seed, what)
    say(f"seed {seed} {what}: done")


def _individual(suite: ContinualSuite, lm: Path, parts: Parts, folder: Path, seed: int, task: str) -> None:
    train(lm, {task: parts[task]}, folder / "individual" / task, suite.tuning, seed)


def _joint(suite: ContinualSuite, lm: Path, parts: Parts, folder: Path, seed: int, _: str) -> None:
    train(lm, parts, folder / "joint", suite.tuning, seed)


def _sequential(suite: ContinualSuite, lm: Path, parts: Parts, folder: Path, seed: int, _: str) -> None:
    before = None
    for i, task in enumerate(suite.orders[seed]):
        place = folder / "sequential" / f"{i}-{task}"
        train(lm, {task: parts[task]}, place, suite.tuning, seed, before)
        before = place


_LONG: dict[str, Callable[[ContinualSuite, Path, Parts, Path, int, str], None]] = {
    "sequential": _sequential,
    "joint": _joint,
}
"""What is trained besides the individual models."""


def _merge(suite: ContinualSuite, cache: Cache, options: argparse.Namespace) -> None:
    """Score the references, and merge by every method."""
    run_all(_merge_one, [(suite, cache, options, seed) for seed in range(options.seeds)], options.jobs)


def _merge_one(suite: ContinualSuite, cache: Cache, options: argparse.Namespace, seed: int) -> None:
    quiet(options.threads)
    how = MergeOptions(suite.grid, costs=seed == 0, threads=options.threads)
    lm, parts, folder = suite.lm_folder(cache), suite.parts(cache), cache.root / f"seed{seed}"
    bench = ContinualBench(lm, parts, folder, suite.orders[seed], how, say)
    for name in REFERENCES:
        bench.reference(name)
    for row in suite.rows(options):
        for rule in RULES:
            bench.run(row, rule)


STEPS = {"train": _train, "merge": _merge, "report": report.write}
