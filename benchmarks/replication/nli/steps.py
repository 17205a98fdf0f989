"""The steps of the suite nli-6: train, merge and report."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.console import say
from benchmarks.replication import cache as store
from benchmarks.replication import smollm
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache, Result, cached, timed
from benchmarks.replication.jobs import quiet, run_all
from benchmarks.replication.nli import learned, report
from benchmarks.replication.nli.merge import NliBench
from benchmarks.replication.nli.observation import observe
from benchmarks.replication.nli.specialists import train
from benchmarks.replication.nli.suite import Nli
from benchmarks.replication.observation import at_step
from benchmarks.replication.suite import Training

__all__ = ["STEPS"]


def _train(suite: Nli, cache: Cache, options: argparse.Namespace) -> None:
    """Write the base, then train an adapter of each task and seed, then those that are only observed."""
    quiet(options.threads)

    def make(folder: Path, measured: Result) -> None:
        with timed(measured):
            smollm.write(folder)

    cached(cache.base, {"base": "SmolLM2-135M-Instruct"}, make)
    jobs = [(seed, task, suite.training) for seed in options.seeds for task in suite.tasks]
    others = [one[:2] for one in suite.observations() if one[1] != suite.training]
    jobs += [(0, *one) for one in others if 0 in options.seeds]
    run_all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _train_one(
    suite: Nli, cache: Cache, options: argparse.Namespace, seed: int, task: str, training: Training
) -> None:
    quiet(options.threads)
    what = f"seed {seed} {task}, rate {training.rate:g}"
    marker = train(
        cache.base,
        suite.read([task])[task],
        suite.adapter(cache, seed, task, training),
        training,
        seed,
        suite.saved_in(training),
        {"most_train": suite.most_train, "validation": suite.validation},
        lambda line: say(f"{what}: {line}"),
    )
    say(f"{what}: {marker['seconds']:.0f} s, loss {marker['losses'][-1]:.3f}")


def _merge(suite: Nli, cache: Cache, options: argparse.Namespace) -> None:
    """Observe the adapters of the first seed, and merge those of each by every method."""
    quiet(options.threads)
    _observe(suite, cache)
    for seeds in (options.seeds[:1], options.seeds[1:]):  # later seeds look for scales near the first one's
        run_all(_merge_one, [(suite, cache, options, seed) for seed in seeds], options.jobs)


def _observe(suite: Nli, cache: Cache) -> None:
    splits = suite.read()
    for task, training, steps in suite.observations():
        folder = suite.adapter(cache, 0, task, training)
        if store.read(folder) is None:
            say(f"{task}, rate {training.rate:g}: not trained yet, and so not observed")
            continue
        adapters = {step: at_step(folder, step, training.steps) for step in steps}
        split, place = splits[task], suite.observation(cache, task, training)
        inputs = split.train[-suite.inputs :]
        observe(cache.base, task, adapters, inputs, split.validation, place, say)


def _merge_one(suite: Nli, cache: Cache, options: argparse.Namespace, seed: int) -> None:
    quiet(options.threads)
    how = MergeOptions(suite.grid, suite.screen, costs=seed == 0, peers=False, threads=options.threads)
    bench = NliBench(suite, cache, seed, how, say)
    bench.reference()
    for row in suite.rows(options):
        bench.run(row)
    for learned_row in suite.learned_rows(options):
        learned.run(bench, learned_row)


STEPS = {"train": _train, "merge": _merge, "report": report.write}
