"""The steps of the suite multimodal-3: train, merge and report."""

from __future__ import annotations

import argparse

from benchmarks.console import say
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache
from benchmarks.replication.data import data_folder
from benchmarks.replication.jobs import quiet, run_all
from benchmarks.replication.multimodal import inputs, report
from benchmarks.replication.multimodal.bases import write_union
from benchmarks.replication.multimodal.merge import MultimodalBench
from benchmarks.replication.multimodal.questions import SKILLS
from benchmarks.replication.multimodal.rows import COMPOSED, DECOUPLED, JOINT_MODEL, NAIVE, merges
from benchmarks.replication.multimodal.specialists import train
from benchmarks.replication.multimodal.suite import Multimodal

__all__ = ["STEPS"]


def _train(suite: Multimodal, cache: Cache, options: argparse.Namespace) -> None:
    """Write the LM, the encoders and the models with new projectors, then train those of each seed."""
    quiet(options.threads)
    for modality in SKILLS:
        write_union(suite, cache, modality, data_folder())
    models = {DECOUPLED: (*SKILLS, JOINT_MODEL), NAIVE: tuple(SKILLS)}
    ways = options.kinds or suite.trainings
    jobs = [(seed, way, name) for seed in options.seeds for way in ways for name in models[way]]
    run_all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _train_one(
    suite: Multimodal, cache: Cache, options: argparse.Namespace, seed: int, way: str, name: str
) -> None:
    quiet(options.threads)
    unions = {one: suite.union(cache, one) for one in (SKILLS if name == JOINT_MODEL else (name,))}
    folder, what = suite.trained(cache, seed, name, way), f"seed {seed} {name}, {way}"
    sets = inputs.read(data_folder())
    marker = train(unions, sets, folder, suite.how(way), seed, lambda line: say(f"{what}: {line}"))
    say(f"{what}: {marker['seconds']:.0f} s, loss {marker['losses'][-1]:.3f}")


def _merge(suite: Multimodal, cache: Cache, options: argparse.Namespace) -> None:
    """Score specialists and the base, and compose the specialists by every method."""
    for seeds in (options.seeds[:1], options.seeds[1:]):  # later seeds look for scales near the first one's
        run_all(_merge_one, [(suite, cache, options, seed) for seed in seeds], options.jobs)


def _merge_one(suite: Multimodal, cache: Cache, options: argparse.Namespace, seed: int) -> None:
    quiet(options.threads)
    how = MergeOptions(suite.grid, costs=seed == 0, threads=options.threads)
    bench = MultimodalBench(suite, cache, seed, data_folder(), how, say)
    bench.base_abilities()
    for modality in SKILLS:
        bench.alone(modality)
    for composed in COMPOSED:
        bench.compose(composed)
    for row in merges(options.methods):
        bench.run(row)
    if not all(suite.trained(cache, seed, name, NAIVE).exists() for name in SKILLS):
        say(f"seed {seed}: no specialists with one LoRA for all tokens are trained, and so none is merged")
        return
    for row in merges(options.methods, NAIVE):
        MultimodalBench(suite, cache, seed, data_folder(), how, say, NAIVE).run(row)


STEPS = {"train": _train, "merge": _merge, "report": report.write}
