"""The steps of the suite continual-6: train, merge and report."""

from __future__ import annotations

import argparse

from benchmarks.console import say
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache
from benchmarks.replication.continual import report
from benchmarks.replication.continual.merge import ContinualBench
from benchmarks.replication.continual.rows import FOLLOWED, MIXED, REFERENCES, rows
from benchmarks.replication.continual.scores import TaskScorer
from benchmarks.replication.continual.suite import ContinualSuite
from benchmarks.replication.continual.sweeps import sweep
from benchmarks.replication.continual.training import TaskTrainer, train_base
from benchmarks.replication.continual.twins import TWINS, compare_twins
from benchmarks.replication.data import data_folder
from benchmarks.replication.jobs import quiet, run_all

__all__ = ["STEPS"]


def _train(suite: ContinualSuite, cache: Cache, options: argparse.Namespace) -> None:
    """Write the base, then train on each task, on one after another, and on all, seed by seed."""
    quiet(options.threads)
    train_base(suite, cache, data_folder())
    kinds = options.kinds or suite.trainings
    jobs = [
        (suite, cache, options, seed, what)
        for seed in options.seeds
        for kind in kinds
        for what in (suite.orders[seed] if kind == "individual" else (kind,))
    ]
    if "individual" in kinds and 0 in options.seeds:
        jobs.append((suite, cache, options, 0, TWINS[1]))
    run_all(_train_one, jobs, options.jobs)


def _train_one(
    suite: ContinualSuite, cache: Cache, options: argparse.Namespace, seed: int, what: str
) -> None:
    quiet(options.threads)
    TaskTrainer(suite, cache, seed, data_folder()).train(what)


def _merge(suite: ContinualSuite, cache: Cache, options: argparse.Namespace) -> None:
    """Score what is trained, merge by every method, and follow the most telling merges task by task."""
    for seeds in (options.seeds[:1], options.seeds[1:]):  # later seeds look for scales near the first one's
        run_all(_merge_one, [(suite, cache, options, seed) for seed in seeds], options.jobs)


def _merge_one(suite: ContinualSuite, cache: Cache, options: argparse.Namespace, seed: int) -> None:
    quiet(options.threads)
    how = MergeOptions(suite.grid, costs=False, threads=options.threads)
    bench = ContinualBench(suite, cache, seed, TaskScorer(suite, cache, data_folder()), how, say)
    for name in REFERENCES:
        bench.reference(name)
    chosen = rows(options.methods)
    for row in chosen:
        bench.run(row)
    for row in (row for row in chosen if row.projectors == MIXED):
        bench.serve(row)
    for row in chosen:
        if row.name in FOLLOWED:
            bench.follow(row)
            if row.projectors == MIXED:
                bench.follow_served(row)
    if options.methods is None:
        sweep(bench)
        compare_twins(bench)


STEPS = {"train": _train, "merge": _merge, "report": report.write}
