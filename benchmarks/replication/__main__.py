"""`python -m benchmarks.replication train|merge|report|all|serve|observe|admit SUITE`: one set of rules.

SUITE is a suite of the bench, or one's own: path/to/file.py:NAME, package.module:NAME.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.console import listed, say
from benchmarks.replication import methods
from benchmarks.replication.audiovisual.rows import EXTRA
from benchmarks.replication.audiovisual.steps import STEPS as AUDIO_VISUAL_STEPS
from benchmarks.replication.audiovisual.suite import AUDIO_VISUAL, WAYS
from benchmarks.replication.cache import Cache
from benchmarks.replication.calibrated import CALIBRATED
from benchmarks.replication.continual.rows import CONTINUAL_ROWS
from benchmarks.replication.continual.steps import STEPS as CONTINUAL_STEPS
from benchmarks.replication.continual.suite import CONTINUAL_6, TRAININGS
from benchmarks.replication.multimodal.rows import METHODS as MULTIMODAL_METHODS
from benchmarks.replication.multimodal.steps import STEPS as MULTIMODAL_STEPS
from benchmarks.replication.multimodal.suite import MULTIMODAL_3
from benchmarks.replication.nli.rows import LEARNED
from benchmarks.replication.nli.steps import STEPS as NLI_STEPS
from benchmarks.replication.nli.suite import NLI_6
from benchmarks.replication.own import suite_named
from benchmarks.replication.skills.routed import MASS_ROWS
from benchmarks.replication.skills.steps import STEPS as SKILLS_STEPS
from benchmarks.replication.skills.suite import SKILLS_8
from benchmarks.replication.steps import STEPS, admit, follow, serve
from benchmarks.replication.suite import Suite
from benchmarks.replication.text import TEXT_8
from benchmarks.replication.vision.suites import HETERO_20, VISION_8, VISION_14, VISION_20

Steps = Mapping[str, Callable[[Any, Cache, argparse.Namespace], None]]

SUITES = {suite.name: suite for suite in (TEXT_8, VISION_8, VISION_14, VISION_20, HETERO_20)}
OTHERS: dict[str, tuple[Any, Steps]] = {
    AUDIO_VISUAL.name: (AUDIO_VISUAL, AUDIO_VISUAL_STEPS),
    CONTINUAL_6.name: (CONTINUAL_6, CONTINUAL_STEPS),
    MULTIMODAL_3.name: (MULTIMODAL_3, MULTIMODAL_STEPS),
    NLI_6.name: (NLI_6, NLI_STEPS),
    SKILLS_8.name: (SKILLS_8, SKILLS_STEPS),
}
"""Suites on a decoder, which bring steps of their own."""
BESIDE = {"admit": admit, "serve": serve, "observe": follow}
"""Steps of suites on an encoder that `all` does not take. One on a decoder may have some of them, too."""
FAST_STEPS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked for; return the exit status."""
    options = _options(arguments)
    steps, name = _steps(options)
    for step in ("train", "merge", "report") if options.step == "all" else (options.step,):
        started = time.perf_counter()
        steps[step]()
        say(f"{step} {name}: {time.perf_counter() - started:.0f} s")
    return 0


def _steps(options: argparse.Namespace) -> tuple[dict[str, Callable[[], None]], str]:
    """Return the steps of the suite that is asked for, ready to be called, and its name."""
    if options.suite in OTHERS:
        suite, known = OTHERS[options.suite]
        suite = suite.fast() if options.fast else suite
        cache = Cache(options.cache, suite.name) if options.cache else Cache.default(suite.name)
    else:
        suite, cache = _suite(options)
        known = STEPS | BESIDE
    return {step: partial(work, suite, cache, options) for step, work in known.items()}, suite.name


def _suite(options: argparse.Namespace) -> tuple[Suite, Cache]:
    suite: Suite = options.named
    if options.tasks and tuple(options.tasks) != suite.tasks:  # a suite of its own: it shares no head
        suite = suite.alone("-".join([suite.name, *options.tasks]), tuple(options.tasks))
    if options.fast:
        fewer = {kind: replace(one, steps=FAST_STEPS) for kind, one in suite.trainings.items()}
        few = suite.fast_tasks or suite.tasks[:3]
        tasks = tuple(options.tasks or few)[: len(few)]
        suite = suite.alone(f"{suite.name}-fast", tasks).cut(
            base=suite.fast_base or suite.base, trainings=fewer, validation=100, test=100, most_train=1000
        )
        suite = suite.cut(observed=tasks[:1] if suite.observed else (), paces=(1.0,))
    return suite, Cache(options.cache, *suite.places) if options.cache else Cache.default(*suite.places)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replication", description=__doc__)
    parser.add_argument("step", choices=(*STEPS, *BESIDE, "all"))
    suites = ", ".join((*SUITES, *OTHERS))
    parser.add_argument("suite", help=f"{suites}, or your own: file.py:NAME, module:NAME")
    rows = (*methods.ROWS, *EXTRA, *CALIBRATED, *LEARNED, *MULTIMODAL_METHODS, *CONTINUAL_ROWS)
    in_sequence = [row.name for row in methods.sequence_rows("lora")]
    known = list(dict.fromkeys([*(row.name for row in rows), *in_sequence, *MASS_ROWS]))
    parser.add_argument("--methods", type=listed(known), help="of: " + ", ".join(known))
    parser.add_argument("--rows", type=lambda text: text.split(","), help="of `serve`: routing/rows.py")
    parser.add_argument("--tasks", type=lambda text: text.split(","), help="other tasks than the suite's own")
    kinds = ("full", "lora", *WAYS, *TRAININGS)
    parser.add_argument(
        "--kinds", type=listed(kinds), help="train and merge only these kinds, of: " + ", ".join(kinds)
    )
    parser.add_argument("--seeds", type=int, help="how many (default: to the third, with --fast one)")
    parser.add_argument("--first-seed", type=int, default=0, help="the number of the first (default 0)")
    parser.add_argument(
        "--fast", action="store_true", help="a slice of three minutes: says nothing about methods"
    )
    parser.add_argument(
        "--screen", type=int, default=50, help="validation items a task to screen scales on; 0: all"
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
    suite: Any = OTHERS[options.suite][0] if options.suite in OTHERS else SUITES.get(options.suite)
    if suite is None:
        try:
            suite = suite_named(options.suite)
        except ValueError as error:
            parser.error(f"{error}. The bench has {suites}")
    options.named = suite
    if options.suite in OTHERS and options.tasks:
        parser.error(f"--tasks is not for {options.suite}")
    if unknown := [kind for kind in options.kinds or () if kind not in suite.trainings]:
        parser.error(f"--kinds {', '.join(unknown)} is not for {options.suite}")
    if options.suite in OTHERS and options.step in BESIDE and options.step not in OTHERS[options.suite][1]:
        parser.error(f"{options.step} is not for {options.suite}")
    if unknown := [task for task in options.tasks or () if task not in suite.known]:
        parser.error(f"unknown tasks: {', '.join(unknown)}; there are {', '.join(suite.known)}")
    options.seeds = _seeds(options, 1 if options.fast else suite.seeds)
    if not options.seeds or options.first_seed < 0:
        parser.error("--seeds is a number from 1 on, and --first-seed one from 0 on")
    if options.suite == CONTINUAL_6.name and options.seeds.stop > suite.seeds:
        parser.error(f"{options.suite} has {suite.seeds} orders of its tasks, one for each seed")
    if options.fast and options.methods is None:
        options.methods = list(methods.FAST)
    return options


def _seeds(options: argparse.Namespace, usual: int) -> range:
    """Return the seeds that are asked for: `usual` says where they end if nothing else does."""
    first = options.first_seed
    return range(first, max(usual, first + 1) if options.seeds is None else first + options.seeds)


if __name__ == "__main__":
    sys.exit(main())
