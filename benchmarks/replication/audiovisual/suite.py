"""The numbers of the suite audio-visual, and where its models lie."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.replication.audiovisual import encoders
from benchmarks.replication.audiovisual.encoders import Features
from benchmarks.replication.audiovisual.items import STREAMS
from benchmarks.replication.audiovisual.modalities import MODALITIES
from benchmarks.replication.audiovisual.rows import EXTRA
from benchmarks.replication.audiovisual.specialists import WAYS
from benchmarks.replication.cache import Cache
from benchmarks.replication.lm.fit import Tuning
from benchmarks.replication.lm.pretrain import PASS, TextPretraining
from benchmarks.replication.methods import GRID, Merge, adapter_rows

__all__ = ["AUDIO_VISUAL", "WAYS", "AudioVisual"]


@dataclass(frozen=True)
class AudioVisual:
    """Everything that fixes the suite's results but the seed.

    `validation` and `test` are items of each probe. `epochs` and `most` shorten the encoders' training, and
    `least` is what the LM must know of every skill in text.
    """

    name: str = "audio-visual"
    pretraining: TextPretraining = field(default_factory=TextPretraining)
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
            pretraining=replace(self.pretraining, steps=250, soft_steps=30),
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

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the results wants to know, under the names that results have."""
        return {
            "name": self.name,
            "senses": {one.slot: {"new skill": one.new, "data": one.source} for one in MODALITIES},
            "school": self.pretraining.config(),
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
        return adapter_rows(self.tuning.rank, options.methods, EXTRA)

    def lm_folder(self, cache: Cache) -> Path:
        """Return where the LM lies; other suites use it too."""
        return cache.root.with_name(self.lm)

    @staticmethod
    def encoder_folder(cache: Cache, slot: str) -> Path:
        """Return where an encoder and its features lie."""
        return cache.root / "encoders" / slot


AUDIO_VISUAL = AudioVisual()
