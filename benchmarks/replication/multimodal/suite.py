"""The numbers of the suite multimodal-3, and where its models lie."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.replication import smollm
from benchmarks.replication.cache import Cache
from benchmarks.replication.multimodal.decoupled import DecoupledTraining
from benchmarks.replication.multimodal.questions import SKILLS
from benchmarks.replication.multimodal.rows import DECOUPLED, JOINT_MODEL, NAIVE
from benchmarks.replication.suite import Base
from benchmarks.replication.vision.suites import BASE, SHORT

__all__ = ["MULTIMODAL_3", "Multimodal"]

ENCODER = {"steps": 600, "rate": 7e-4, "batch": 32}


@dataclass(frozen=True)
class Multimodal:
    """Everything that fixes the suite's results but the seed.

    `validation` and `test` are items of a joint kind of question; others have a share of it. `abilities` are
    items of what the language model could do before.
    """

    name: str = "multimodal-3"
    lm: Base = field(default_factory=lambda: Base(smollm.write, "smollm2"))
    eyes: Base = BASE
    encoder: dict[str, Any] = field(default_factory=lambda: dict(ENCODER))
    training: DecoupledTraining = field(default_factory=DecoupledTraining)
    trainings: tuple[str, ...] = (DECOUPLED, NAIVE)
    seeds: int = 3
    validation: int = 16
    test: int = 100
    abilities: int = 100
    grid: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0)

    def fast(self) -> Multimodal:
        """Return a slice of it that runs in three minutes and says nothing about methods."""
        return replace(
            self,
            name=f"{self.name}-fast",
            trainings=(DECOUPLED,),
            lm=Base(partial(smollm.write, layers=3), "smollm2-fast"),
            eyes=SHORT,
            encoder=self.encoder | {"steps": 20},
            training=replace(self.training, steps=5, batch=4, align_steps=20),
            validation=2,
            test=4,
            abilities=4,
            grid=(0.5, 1.0),
        )

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the results wants to know."""
        return {
            "name": self.name,
            "modalities": list(SKILLS),
            "encoder": self.encoder,
            "training": self.training.config(),
            "validation": self.validation,
            "test": self.test,
            "abilities": self.abilities,
            "grid": list(self.grid),
        }

    def lm_folder(self, cache: Cache) -> Path:
        """Return where the language model lies; other suites use it too."""
        return cache.root.with_name(self.lm.home)

    def eyes_folder(self, cache: Cache) -> Path:
        """Return where the vision suites' base lies."""
        return cache.root.with_name(self.eyes.home) / "base"

    @staticmethod
    def encoder_folder(cache: Cache) -> Path:
        """Return where the tuned ViT lies."""
        return cache.root / "encoder"

    @staticmethod
    def union(cache: Cache, modality: str) -> Path:
        """Return where a model with a new projector lies."""
        return cache.root / "untrained" / modality

    @staticmethod
    def trained(cache: Cache, seed: int, name: str, way: str = DECOUPLED) -> Path:
        """Return the folder of a specialist, by its modality and how it is trained, or of the joint model."""
        return cache.specialist(seed, way, name)

    def how(self, way: str) -> DecoupledTraining:
        """Return how specialists are trained in a way."""
        return replace(self.training, apart=way == DECOUPLED)

    def model(self, cache: Cache, seed: int, modality: str, trained: str = "", way: str = DECOUPLED) -> Path:
        """Return the folder of the multimodal model of a specialist, or of the joint training's modality."""
        folder = self.trained(cache, seed, trained or modality, way)
        return folder / f"model-{modality}" if trained == JOINT_MODEL else folder


MULTIMODAL_3 = Multimodal()
