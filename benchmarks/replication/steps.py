"""The steps of a suite: train, merge and report, several jobs at once.

They are not in `__main__`, which processes that are started anew cannot import from.
"""

from __future__ import annotations

import argparse
import datetime
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.replication import methods, page, report
from benchmarks.replication.cache import Cache
from benchmarks.replication.suite import Suite

__all__ = ["STEPS", "admit", "quiet", "run_all", "say", "serve"]

FAST_GRID = (0.1, 0.3, 1.0)


def _train(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    from benchmarks.replication import train

    quiet()
    say(f"{suite.name}: the base, the heads, then {len(suite.tasks)} models for each seed and kind")
    train.write_base(suite, cache)
    for seed in range(options.seeds):
        train.heads(suite, cache, lambda: _splits(suite.home), seed)
    jobs = [
        (kind, seed, task)
        for seed in range(options.seeds)
        for kind in _kinds(suite, options)
        for task in suite.tasks
    ]
    run_all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _train_one(
    suite: Suite, cache: Cache, options: argparse.Namespace, kind: str, seed: int, task: str
) -> None:
    from benchmarks.replication import train

    quiet(options.threads)
    splits = _splits(suite, [task])
    head = train.load_heads(suite, cache, splits, seed)[task]
    name = f"{kind} seed {seed} {task}"
    found = train.specialist(
        suite, cache, splits[task], head, kind, seed, options.device, lambda line: say(f"{name}: {line}")
    )
    say(f"{name}: {found['seconds']:.0f} s, loss {found['losses'][-1]:.3f}")


def admit(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    """Train all candidates that the suite was chosen from, on seed 0, and say which are admitted."""
    from benchmarks.replication.admit import admission, markdown

    whole = suite.home
    _train(whole, cache, argparse.Namespace(**vars(options) | {"seeds": 1}))
    splits = _splits(whole)
    kinds = _kinds(whole, options)
    found = {kind: admission(whole, cache, splits, kind, 0, options.device) for kind in kinds}
    text = markdown(whole, found)
    out = page.out_folder(cache.root, options)
    (out / f"replication-{whole.name}-admission.md").write_text(text)
    print(text)
    for kind, candidates in found.items():
        no = [one.task for one in candidates if one.task in suite.tasks and not one.admitted]
        say(
            f"{suite.name}, {kind}: " + (f"not admitted: {', '.join(no)}" if no else "all tasks are admitted")
        )


def _merge(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    """Merge the first seed of all kinds, then the later ones, which look for scales where it found them."""
    kinds = _kinds(suite, options)
    for seeds in (range(1), range(1, options.seeds)):
        jobs = [(suite, cache, options, kind, seed) for kind in kinds for seed in seeds]
        run_all(_merge_one, jobs, options.jobs)


def _merge_one(suite: Suite, cache: Cache, options: argparse.Namespace, kind: str, seed: int) -> None:
    from benchmarks.replication.merge import Bench, Plan, everything

    quiet(options.threads)
    first = seed == 0  # costs do not depend on the seed
    plan = Plan(
        grid=FAST_GRID if options.fast else methods.GRID,
        screen=0 if options.fast else options.screen,
        costs=first,
        peers=first and not options.no_peers,
        device=options.device,
        threads=options.threads,
    )
    bench = Bench(suite, cache, _splits(suite), kind, seed, plan, say)
    everything(bench, methods.rows(kind, options.methods, suite.trainings[kind].rank))


def serve(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    """Serve the specialists as one model in every way, with nobody to name the task; write tables."""
    from benchmarks.replication.routing import report as routing

    jobs = [(kind, seed) for seed in range(options.seeds) for kind in _kinds(suite, options)]
    run_all(_serve_one, [(suite, cache, options, *job) for job in jobs], options.jobs)
    kinds = routing.gather(suite, cache, range(options.seeds))
    _say_outdated(kinds)
    out, stem = page.out_folder(cache.root, options), f"replication-{suite.name}-served"
    results = _facts(suite, f"{suite.name}, the task unknown", kinds)
    page.write(out, stem, results, report.markdown(results, routing.tables(kinds), note=routing.NOTE))
    routing.draw(kinds, out / f"{stem}.png")
    say(f"wrote {stem}.json, .md and .png in {out}")


def _serve_one(suite: Suite, cache: Cache, options: argparse.Namespace, kind: str, seed: int) -> None:
    from benchmarks.replication.routing.measure import Servers
    from benchmarks.replication.routing.rows import ROWS

    quiet(options.threads)
    servers = Servers(suite, cache, _splits(suite), kind, seed, options.threads, say)
    servers.everything([row for row in ROWS if not options.rows or row.name in options.rows])
    servers.clean()


def _report(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    from benchmarks.replication.plots import draw

    kinds = report.gather(suite, cache, range(options.seeds), options.methods)
    if not kinds:
        raise SystemExit(
            f"nothing to report: run `python -m benchmarks.replication merge {options.suite}` first"
        )
    _say_outdated(kinds)
    results = _facts(suite, suite.name, kinds)
    out, stem = page.out_folder(cache.root, options), f"replication-{suite.name}"
    page.write(out, stem, results, report.markdown(results, report.tables(results), report.work(kinds)))
    draw(results, out, stem)
    say(f"wrote {stem}.json, .md and .png in {out}")


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


def _splits(suite: Suite, tasks: Sequence[str] | None = None) -> dict[str, Any]:
    from benchmarks.replication import splits

    folder = os.environ.get("SUBMERGE_DATA")
    return splits.load(suite, Path(folder) if folder else None, tasks)


def run_all(work: Callable[..., None], jobs: Iterable[tuple[Any, ...]], at_once: int) -> None:
    """Do all jobs, several at once in processes of their own; the first failure is raised."""
    if at_once == 1:
        for job in jobs:
            work(*job)
        return
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(work, *job) for job in jobs]:
            done.result()


def quiet(threads: int | None = None) -> None:
    """Keep libraries from talking, and give torch so many threads."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # met by PEFT
    if threads:
        torch.set_num_threads(threads)


def say(line: str) -> None:
    """Print a line with the time."""
    Console(stderr=True).print(f"[dim]{datetime.datetime.now():%H:%M:%S}[/] {line}", highlight=False)
