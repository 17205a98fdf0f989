"""The steps of a suite on an encoder: train, merge and report, several jobs at once.

They are not in `__main__`, which processes that are started anew cannot import from.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.console import say
from benchmarks.replication import methods, observation, observe, report, splits, train
from benchmarks.replication.admit import admission, markdown
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache
from benchmarks.replication.calibrated import calibrated_rows
from benchmarks.replication.earlier import publish
from benchmarks.replication.jobs import quiet, run_all
from benchmarks.replication.merge import SuiteBench
from benchmarks.replication.plots import draw
from benchmarks.replication.routing import report as routing
from benchmarks.replication.routing.measure import Servers
from benchmarks.replication.routing.rows import ROWS
from benchmarks.replication.specialists import Specialists
from benchmarks.replication.splits import Split
from benchmarks.replication.suite import Suite, Training

__all__ = ["STEPS", "admit", "follow", "serve"]

FAST_GRID = (0.1, 0.3, 1.0)


def _train(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    quiet()
    say(f"{suite.name}: the base, the heads, then {len(suite.tasks)} models for each seed and kind")
    train.write_base(suite, cache)
    for seed in options.seeds:
        train.heads(suite, cache, lambda: _splits(suite.home), seed)
    jobs = [
        (kind, seed, task)
        for seed in options.seeds
        for kind in _kinds(suite, options)
        for task in suite.tasks
    ]
    run_all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _train_one(
    suite: Suite, cache: Cache, options: argparse.Namespace, kind: str, seed: int, task: str
) -> None:
    quiet(options.threads)
    part = _splits(suite, [task])
    head = train.load_heads(suite, cache, part, seed)[task]
    name = f"{kind} seed {seed} {task}"
    marker = train.specialist(
        suite, cache, part[task], head, kind, seed, options.device, lambda line: say(f"{name}: {line}")
    )
    say(f"{name}: {marker['seconds']:.0f} s, loss {marker['losses'][-1]:.3f}")


def admit(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    """Train all candidates that the suite was chosen from, on seed 0, and say which are admitted."""
    home = suite.home
    _train(home, cache, argparse.Namespace(**vars(options) | {"seeds": range(1)}))
    kinds = {
        kind: admission(_specialists(home, cache, kind, 0), options.device) for kind in _kinds(home, options)
    }
    text = markdown(home, kinds)
    out = page.out_folder(cache.root, options)
    (out / f"replication-{home.name}-admission.md").write_text(text)
    print(text)
    for kind, candidates in kinds.items():
        no = [one.task for one in candidates if one.task in suite.tasks and not one.admitted]
        say(
            f"{suite.name}, {kind}: " + (f"not admitted: {', '.join(no)}" if no else "all tasks are admitted")
        )


def _merge(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    """Merge the first seed of all kinds, then the later ones, which look for scales near its own."""
    kinds = _kinds(suite, options)
    for seeds in (options.seeds[:1], options.seeds[1:]):
        jobs = [(suite, cache, options, kind, seed) for kind in kinds for seed in seeds]
        run_all(_merge_one, jobs, options.jobs)


def _merge_one(suite: Suite, cache: Cache, options: argparse.Namespace, kind: str, seed: int) -> None:
    quiet(options.threads)
    first = seed == 0  # costs do not depend on the seed
    how = MergeOptions(
        grid=FAST_GRID if options.fast else methods.GRID,
        screen=0 if options.fast else options.screen,
        costs=first,
        peers=first and not options.no_peers,
        device=options.device,
        threads=options.threads,
    )
    bench = SuiteBench(_specialists(suite, cache, kind, seed), how, say)
    for row in (
        *methods.rows(kind, options.methods, suite.trainings[kind].rank),
        *methods.sequence_rows(kind, options.methods),
        *calibrated_rows(kind, options.methods),
    ):
        bench.run(row)


def serve(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    """Serve the specialists as one model in every way, with nobody to name the task; write tables."""
    jobs = [(kind, seed) for seed in options.seeds for kind in _kinds(suite, options)]
    run_all(_serve_one, [(suite, cache, options, *job) for job in jobs], options.jobs)
    kinds = routing.gather(suite, cache, options.seeds)
    page.need(kinds, options.suite)
    _say_outdated(kinds)
    found = _facts(suite, f"{suite.name}, the task unknown", kinds)
    stem = f"replication-{suite.name}-served"
    publish(found, stem, cache.root, options, routing.markdown, routing.draw)


def _serve_one(suite: Suite, cache: Cache, options: argparse.Namespace, kind: str, seed: int) -> None:
    quiet(options.threads)
    servers = Servers(_specialists(suite, cache, kind, seed), options.threads, say)
    servers.everything([row for row in ROWS if not options.rows or row.name in options.rows])
    servers.clean()


def follow(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    """Follow adapters of the observed tasks while they are trained, by the first seed; write tables."""
    quiet()
    if not (chosen := observe.trainings(suite)):
        raise SystemExit(f"{suite.name} observes no task: its field `observed` names them")
    seed = options.seeds[0]
    train.write_base(suite, cache)
    train.heads(suite, cache, lambda: _splits(suite.home), seed)
    run_all(_follow_one, [(suite, cache, options, seed, *one) for one in chosen], options.jobs)
    seen = {observation.title(*one): _followed(suite, cache, options, seed, *one) for one in chosen}
    observation.publish(suite.facts(), seed, seen, observe.ABOUT, observe.QUALITY, cache.root, options)


def _follow_one(
    suite: Suite, cache: Cache, options: argparse.Namespace, seed: int, task: str, training: Training
) -> None:
    quiet(options.threads)
    marker = _followed(suite, cache, options, seed, task, training)
    say(f"{observation.title(task, training)}: {marker['seconds']:.0f} s")


def _followed(
    suite: Suite, cache: Cache, options: argparse.Namespace, seed: int, task: str, training: Training
) -> dict[str, Any]:
    split = _splits(suite, [task])
    head = train.load_heads(suite, cache, split, seed)[task]
    title = observation.title(task, training)
    return observe.follow(
        suite, cache, split[task], head, training, seed, lambda line: say(f"{title}: {line}")
    )


def _report(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    kinds = report.gather(suite, cache, options.seeds, options.methods)
    page.need(kinds, options.suite)
    _say_outdated(kinds)
    found = _facts(suite, suite.name, kinds)
    publish(found, f"replication-{suite.name}", cache.root, options, _markdown, draw)


def _markdown(results: Mapping[str, Any]) -> str:
    return report.markdown(results, report.tables(results), report.work(results["kinds"]))


def _say_outdated(kinds: dict[str, Any]) -> None:
    for kind, seeds in kinds.items():
        for seed, entry in seeds.items():
            if names := entry["outdated"]:
                say(f"left out, made with other settings: {kind} seed {seed} {', '.join(names)}")


def _facts(suite: Suite, name: str, kinds: dict[str, Any]) -> dict[str, Any]:
    return page.facts(name, suite.facts()) | {
        "data": {task: asdict(hub) if (hub := suite.known[task].hub) else None for task in suite.tasks},
        "trainings": {kind: training.config() for kind, training in suite.trainings.items()},
        "kinds": kinds,
    }


STEPS: dict[str, Callable[[Suite, Cache, argparse.Namespace], None]] = {
    "train": _train,
    "merge": _merge,
    "report": _report,
}


def _kinds(suite: Suite, options: argparse.Namespace) -> list[str]:
    """Return the kinds of training that are asked for. A report shows all that the cache has."""
    return options.kinds or list(suite.trainings)


def _specialists(suite: Suite, cache: Cache, kind: str, seed: int) -> Specialists:
    return Specialists(suite, cache, _splits(suite), kind, seed)


def _splits(suite: Suite, tasks: Sequence[str] | None = None) -> dict[str, Split]:
    folder = os.environ.get("SUBMERGE_DATA")
    return splits.load(suite, Path(folder) if folder else None, tasks)
