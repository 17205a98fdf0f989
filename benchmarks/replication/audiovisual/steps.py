"""The steps of the suite audio-visual: train, merge and report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.console import say
from benchmarks.replication.audiovisual import encoders, report
from benchmarks.replication.audiovisual.items import STREAMS
from benchmarks.replication.audiovisual.merge import AudioVisualBench
from benchmarks.replication.audiovisual.modalities import MODALITIES
from benchmarks.replication.audiovisual.rows import CEILINGS, JOINT
from benchmarks.replication.audiovisual.specialists import train
from benchmarks.replication.audiovisual.suite import AudioVisual
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache
from benchmarks.replication.jobs import quiet, run_all
from benchmarks.replication.lm.pretrain import pretrain

__all__ = ["STEPS"]


def _train(suite: AudioVisual, cache: Cache, options: argparse.Namespace) -> None:
    """Pretrain the LM, then train encoders, specialists and the joint model; the cache holds them."""
    quiet(options.threads)
    pretrain(suite.pretraining, suite.lm_folder(cache), say, suite.least)
    place = os.environ.get("SUBMERGE_DATA")
    data = Path(place) if place else None
    for modality in MODALITIES:
        encoders.train(modality, data, suite.encoder_folder(cache, modality.slot), suite.epochs, suite.most)
    jobs = [
        (seed, way, name)
        for way in options.kinds or suite.trainings
        for seed in options.seeds
        for name in (*STREAMS, JOINT)
    ]
    run_all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _train_one(
    suite: AudioVisual, cache: Cache, options: argparse.Namespace, seed: int, way: str, name: str
) -> None:
    quiet(options.threads)
    slots = list(STREAMS) if name == JOINT else [name]
    folder = cache.root / f"seed{seed}" / way / name
    marker = train(suite.lm_folder(cache), suite.features(cache), folder, slots, way, seed, suite.tuning)
    say(f"seed {seed} {way} {name}: {marker['seconds']:.0f} s, loss {marker['losses'][-1]:.3f}")


def _merge(suite: AudioVisual, cache: Cache, options: argparse.Namespace) -> None:
    """Score what is no merge, and merge by every method."""
    jobs = [(seed, way) for way in options.kinds or suite.trainings for seed in options.seeds]
    run_all(_merge_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _merge_one(suite: AudioVisual, cache: Cache, options: argparse.Namespace, seed: int, way: str) -> None:
    quiet(options.threads)
    first = seed == 0 and way == suite.trainings[0]  # costs do not depend on them
    how = MergeOptions(suite.grid, costs=first, threads=options.threads)
    items = {"validation": suite.validation, "test": suite.test}
    folder = cache.root / f"seed{seed}"
    bench = AudioVisualBench(suite.lm_folder(cache), suite.features(cache), folder, way, items, how, say)
    for name in CEILINGS:
        bench.ceiling(name)
    for row in suite.rows(options):
        bench.run(row)


STEPS = {"train": _train, "merge": _merge, "report": report.write}
