"""The steps of the suite nli-6: train, merge and report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.console import say
from benchmarks.replication import cache as store
from benchmarks.replication import methods, smollm
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
    """Observe the adapters of the first seed, and merge those of each by every method, some rows at once."""
    quiet(options.threads)
    run_all(_observe, [(suite, cache, options, *one) for one in suite.observations()], options.jobs)
    for seeds in (options.seeds[:1], options.seeds[1:]):  # later seeds look for scales near the first one's
        run_all(_refer, [(suite, cache, options, seed) for seed in seeds], options.jobs)
        jobs = [(seed, names) for seed in seeds for names in _together(suite, options)]
        run_all(_merge_rows, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _observe(
    suite: Nli,
    cache: Cache,
    options: argparse.Namespace,
    task: str,
    training: Training,
    steps: tuple[int, ...],
) -> None:
    quiet(options.threads)
    folder = suite.adapter(cache, 0, task, training)
    if store.read(folder) is None:
        say(f"{task}, rate {training.rate:g}: not trained yet, and so not observed")
        return
    adapters = {step: at_step(folder, step, training.steps) for step in steps}
    split, place = suite.read([task])[task], suite.observation(cache, task, training)
    inputs = split.train[-suite.inputs :]
    observe(cache.base, task, adapters, inputs, split.validation, place, say)


def _together(suite: Nli, options: argparse.Namespace) -> list[list[str]]:
    """Return the names of the rows that are asked for; those of one state are done by one process."""
    names = suite.chosen(options.methods)
    of_state = [row.name for row in methods.sequence_rows("lora", names)]
    return [*([of_state] if of_state else []), *([name] for name in names if name not in of_state)]


def _bench(suite: Nli, cache: Cache, options: argparse.Namespace, seed: int) -> NliBench:
    quiet(options.threads)
    how = MergeOptions(suite.grid, suite.screen, costs=seed == 0, peers=False, threads=options.threads)
    return NliBench(suite, cache, seed, how, say)


def _refer(suite: Nli, cache: Cache, options: argparse.Namespace, seed: int) -> None:
    """Score the adapters and the base, with which all rows are compared."""
    _bench(suite, cache, options, seed).reference()


def _merge_rows(
    suite: Nli, cache: Cache, options: argparse.Namespace, seed: int, names: Sequence[str]
) -> None:
    bench = _bench(suite, cache, options, seed)
    for row in suite.rows(names):
        bench.run(row)
    for learned_row in suite.learned_rows(names):
        learned.run(bench, learned_row)


STEPS = {"train": _train, "merge": _merge, "report": report.write}
