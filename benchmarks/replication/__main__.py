"""`python -m benchmarks.replication train|merge|report|all SUITE`: real tasks under the same rules."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.replication import methods, report
from benchmarks.replication.cache import Cache
from benchmarks.replication.suite import Suite
from benchmarks.replication.text import TEXT_8

SUITES = {suite.name: suite for suite in (TEXT_8,)}
FAST_TASKS, FAST_STEPS, FAST_GRID = 3, 30, (0.1, 0.3, 1.0)
HERE = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked for; return the exit status."""
    options = _options(arguments)
    suite, cache = _suite(options)
    for step in ("train", "merge", "report") if options.step == "all" else (options.step,):
        started = time.perf_counter()
        STEPS[step](suite, cache, options)
        _say(f"{step} {suite.name}: {time.perf_counter() - started:.0f} s")
    return 0


def _suite(options: argparse.Namespace) -> tuple[Suite, Cache]:
    suite = SUITES[options.suite]
    if options.tasks and tuple(options.tasks) != suite.tasks:  # a suite of its own: it shares no head
        suite = suite.cut(name="-".join([suite.name, *options.tasks]), tasks=tuple(options.tasks))
    if options.kinds:
        suite = suite.cut(trainings={kind: suite.trainings[kind] for kind in options.kinds})
    if options.fast:
        fewer = {kind: replace(one, steps=FAST_STEPS) for kind, one in suite.trainings.items()}
        tasks = tuple(options.tasks or ("trec", "emotion", "sick_nli"))[:FAST_TASKS]
        suite = suite.cut(
            name=f"{suite.name}-fast", tasks=tasks, trainings=fewer, validation=100, test=100, most_train=1000
        )
    return suite, Cache(options.cache, suite.name) if options.cache else Cache.default(suite.name)


def _train(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    from benchmarks.replication import train

    _quiet()
    train.write_base(suite, cache)
    splits = _splits(suite)
    for seed in range(options.seeds):
        train.heads(suite, cache, splits, seed)
    jobs = [
        (kind, seed, task) for seed in range(options.seeds) for kind in suite.trainings for task in splits
    ]
    _all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _train_one(
    suite: Suite, cache: Cache, options: argparse.Namespace, kind: str, seed: int, task: str
) -> None:
    from benchmarks.replication import train

    _quiet(options.threads)
    splits = _splits(suite)
    head = train.load_heads(suite, cache, splits, seed)[task]
    found = train.specialist(suite, cache, splits[task], head, kind, seed, options.device)
    _say(f"{kind} seed {seed} {task}: {found['seconds']:.0f} s, loss {found['losses'][-1]:.3f}")


def _merge(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    jobs = [(kind, seed) for seed in range(options.seeds) for kind in suite.trainings]
    _all(_merge_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _merge_one(suite: Suite, cache: Cache, options: argparse.Namespace, kind: str, seed: int) -> None:
    from benchmarks.replication.merge import Bench, Plan, everything

    _quiet(options.threads)
    first = seed == 0  # costs do not depend on the seed
    plan = Plan(
        grid=FAST_GRID if options.fast else methods.GRID,
        screen=0 if options.fast else options.screen,
        costs=first,
        peers=first and not options.no_peers,
        device=options.device,
        threads=options.threads,
    )
    bench = Bench(suite, cache, _splits(suite), kind, seed, plan, _say)
    everything(bench, methods.rows(kind, options.methods))


def _report(suite: Suite, cache: Cache, options: argparse.Namespace) -> None:
    from benchmarks.replication.plots import draw
    from benchmarks.speed import machine

    kinds = report.gather(suite, cache, range(options.seeds), options.methods)
    if not kinds:
        raise SystemExit(
            f"nothing to report: run `python -m benchmarks.replication merge {options.suite}` first"
        )
    results = {
        "name": suite.name,
        "command": _command(sys.argv[1:]),
        "date": f"{datetime.date.today()}",
        "machine": machine.describe(),
        "suite": suite.facts(),
        "data": {task: vars(suite.known[task].hub) for task in suite.tasks},
        "trainings": {kind: training.config() for kind, training in suite.trainings.items()},
        "kinds": kinds,
    }
    out = options.out or (cache.root if options.fast else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    stem = f"replication-{suite.name}"
    (out / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{stem}.md").write_text(report.markdown(results, report.tables(results)))
    draw(results, out, stem)
    _say(f"wrote {stem}.json, .md and .png in {out}")


STEPS: dict[str, Callable[[Suite, Cache, argparse.Namespace], None]] = {
    "train": _train,
    "merge": _merge,
    "report": _report,
}


def _command(arguments: Sequence[str]) -> str:
    """Return the command as another would run it: without the places on this machine."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cache")
    parser.add_argument("--out")
    return shlex.join(["python", "-m", "benchmarks.replication", *parser.parse_known_args(arguments)[1]])


def _splits(suite: Suite) -> dict[str, Any]:
    from benchmarks.replication import splits

    folder = os.environ.get("SUBMERGE_DATA")
    return splits.load(suite, Path(folder) if folder else None)


def _all(work: Callable[..., None], jobs: Iterable[tuple[Any, ...]], at_once: int) -> None:
    """Do all jobs, several at once in processes of their own; the first failure is raised."""
    if at_once == 1:
        for job in jobs:
            work(*job)
        return
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(work, *job) for job in jobs]:
            done.result()


def _quiet(threads: int | None = None) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)


def _say(line: str) -> None:
    Console(stderr=True).print(f"[dim]{datetime.datetime.now():%H:%M:%S}[/] {line}", highlight=False)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replication", description=__doc__)
    parser.add_argument("step", choices=(*STEPS, "all"))
    parser.add_argument("suite", choices=SUITES)
    known = [row.name for row in methods.ROWS]
    parser.add_argument("--methods", type=_some(known), help="of: " + ", ".join(known))
    parser.add_argument("--tasks", type=lambda text: text.split(","), help="other tasks than the suite's own")
    parser.add_argument("--kinds", type=_some(("full", "lora")), help="full, lora or both (default)")
    parser.add_argument("--seeds", type=int, help="0 … n − 1 (default 3, with --fast 1)")
    parser.add_argument(
        "--fast", action="store_true", help="a slice of three minutes: says nothing about methods"
    )
    parser.add_argument(
        "--screen", type=int, default=100, help="validation items a task to screen scales on; 0: all"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument(
        "--device", default="cpu", help="where models run, such as cuda; merges are on the CPU"
    )
    parser.add_argument("--no-peers", action="store_true", help="no parity rows by mergekit and PEFT")
    parser.add_argument(
        "--cache", type=Path, help="default: $SUBMERGE_CACHE/replication, else benchmarks/work"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results; with --fast the cache")
    options = parser.parse_args(arguments)
    suite = SUITES[options.suite]
    if unknown := [task for task in options.tasks or () if task not in suite.known]:
        parser.error(f"unknown tasks: {', '.join(unknown)}; there are {', '.join(suite.known)}")
    options.seeds = options.seeds or (1 if options.fast else suite.seeds)
    if options.fast and options.methods is None:
        options.methods = list(methods.FAST)
    return options


def _some(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
