"""The suite audio-visual: its numbers, and its steps train, merge and report."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.replication.audiovisual import encoders, report
from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.items import STREAMS
from benchmarks.replication.audiovisual.merge import CEILINGS, EXTRA, Bench, Plan
from benchmarks.replication.audiovisual.senses import SENSES
from benchmarks.replication.audiovisual.specialists import JOINT, WAYS, train
from benchmarks.replication.cache import Cache
from benchmarks.replication.lm.fit import Tuning
from benchmarks.replication.lm.merging import merges
from benchmarks.replication.lm.school import PASS, School, teach
from benchmarks.replication.methods import GRID, Merge
from benchmarks.replication.steps import quiet, run_all, say

__all__ = ["AUDIO_VISUAL", "AudioVisual"]


@dataclass(frozen=True)
class AudioVisual:
    """Everything that fixes the suite's results but the seed.

    `validation` and `test` are items of each probe. `epochs` and `most` shorten the encoders' training, and
    `least` is what the LM must know of every skill in text.
    """

    name: str = "audio-visual"
    school: School = field(default_factory=School)
    tuning: Tuning = field(default_factory=Tuning)
    trainings: tuple[str, ...] = WAYS
    seeds: int = 3
    validation: int = 50
    test: int = 300
    grid: tuple[float, ...] = GRID
    epochs: int | None = None
    most: int | None = None
    least: float = PASS
    lm: str = "lm"

    def fast(self) -> AudioVisual:
        """Return a slice of it that runs in three minutes and says nothing about methods."""
        return replace(
            self,
            name=f"{self.name}-fast",
            school=replace(self.school, steps=250, soft_steps=30),
            tuning=replace(self.tuning, first=20, steps=30),
            trainings=WAYS[:1],
            validation=20,
            test=20,
            grid=(0.1, 0.3, 1.0),
            epochs=1,
            most=1000,
            least=0.0,
            lm="lm-fast",
        )

    def train(self, cache: Cache, options: argparse.Namespace) -> None:
        """Teach the LM, then train encoders, specialists and the joint model; the cache keeps them."""
        quiet(options.threads)
        teach(self.school, self.lm_folder(cache), say, self.least)
        for sense in SENSES:
            encoders.prepare(sense, _data(), self.encoder_folder(cache, sense.slot), self.epochs, self.most)
        jobs = [
            (seed, way, name)
            for way in options.kinds or self.trainings
            for seed in range(options.seeds)
            for name in (*STREAMS, JOINT)
        ]
        run_all(_train_one, [(self, cache, options, *job) for job in jobs], options.jobs)

    def merge(self, cache: Cache, options: argparse.Namespace) -> None:
        """Score what is no merge, and merge by every method."""
        jobs = [(seed, way) for way in options.kinds or self.trainings for seed in range(options.seeds)]
        run_all(_merge_one, [(self, cache, options, *job) for job in jobs], options.jobs)

    def report(self, cache: Cache, options: argparse.Namespace) -> None:
        """Write JSON, tables and pictures."""
        report.write(self, cache, options)

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the results wants to know."""
        return {
            "name": self.name,
            "senses": {sense.slot: {"new skill": sense.new, "data": sense.source} for sense in SENSES},
            "school": self.school.config(),
            "tuning": self.tuning.config(),
            "validation": self.validation,
            "test": self.test,
            "grid": list(self.grid),
        }

    def features(self, cache: Cache) -> dict[str, dict[str, Features]]:
        """Return slot -> part -> cached features."""
        return {slot: encoders.load(self.encoder_folder(cache, slot)) for slot in STREAMS}

    def rows(self, options: argparse.Namespace) -> list[Merge]:
        """Return the merges that are asked for; the average is always among them."""
        return merges(self.tuning.rank, options.methods, EXTRA)

    def lm_folder(self, cache: Cache) -> Path:
        """Return where the LM lies; other suites use it too."""
        return cache.root.with_name(self.lm)

    @staticmethod
    def encoder_folder(cache: Cache, slot: str) -> Path:
        """Return where an encoder and its features lie."""
        return cache.root / "encoders" / slot


AUDIO_VISUAL = AudioVisual()


def _data() -> Path | None:
    place = os.environ.get("SUBMERGE_DATA")
    return Path(place) if place else None


def _train_one(
    suite: AudioVisual, cache: Cache, options: argparse.Namespace, seed: int, way: str, name: str
) -> None:
    quiet(options.threads)
    slots = list(STREAMS) if name == JOINT else [name]
    folder = cache.root / f"seed{seed}" / way / name
    found = train(suite.lm_folder(cache), suite.features(cache), folder, slots, way, seed, suite.tuning)
    say(f"seed {seed} {way} {name}: {found['seconds']:.0f} s, loss {found['losses'][-1]:.3f}")


def _merge_one(suite: AudioVisual, cache: Cache, options: argparse.Namespace, seed: int, way: str) -> None:
    quiet(options.threads)
    first = seed == 0 and way == suite.trainings[0]  # costs do not depend on them
    plan = Plan(suite.grid, suite.validation, suite.test, first, options.threads)
    bench = Bench(suite.lm_folder(cache), suite.features(cache), cache.root / f"seed{seed}", way, plan, say)
    for name in CEILINGS:
        bench.ceiling(name)
    for row in suite.rows(options):
        bench.run(row)
