"""The numbers of the suite skills-8, and where its models lie."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.replication import smollm
from benchmarks.replication.cache import Cache
from benchmarks.replication.methods import GRID
from benchmarks.replication.skills.tasks import SKILLS, Example, Skill, read
from benchmarks.replication.suite import Base, Training

__all__ = ["ROWS", "SKILLS_8", "START", "Skills"]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""All maps of attention: form and content of an answer are to be learnt in a hundred steps of eight examples,
and keys and outputs add little to what a step costs."""
ROWS = (
    "task_arithmetic",
    "ties",
    "tsv_m",
    "knots_ties",
    "iso_c",
    "wudi",
    "ssam",
    "dare_ties",
    "nsc",
    "nsc_forced",
    "match_scale",
)
"""What is merged where nothing is said, before MASS: the most telling rows first, for each takes long."""
START = {
    "task_arithmetic": 0.3,
    "ties": 0.8,
    "dare_ties": 0.45,
    "knots_ties": 1.0,
    "tsv_m": 0.6,
    "iso_c": 2.0,
    "wudi": 1.0,
    "ssam": 0.45,
    "many": 1.0,
}
"""Row -> where the search for its scale begins: about what the adapters of text-8 took."""
TRAINING = Training(steps=100, rate=2e-3, rank=16, alpha=32, batch=8, warmup=10, decay=0.0)


@dataclass(frozen=True)
class Skills:
    """Everything that fixes the suite's results but the seed.

    `most_train`, `validation` and `test` are examples of each skill; `longest` are the tokens that a
    conversation may have to be trained on. Of the skills `observed` adapters are followed while they are
    trained, at the rate of the others times each of `paces`, and scored on `answered` validation prompts.
    """

    name: str = "skills-8"
    skills: tuple[Skill, ...] = SKILLS
    base: Base = field(default_factory=lambda: Base(smollm.write, "smollm2"))
    training: Training = TRAINING
    targets: tuple[str, ...] = TARGETS
    trainings: tuple[str, ...] = ()
    seeds: int = 3
    most_train: int = 2000
    validation: int = 24
    test: int = 64
    longest: int = 128
    observed: tuple[str, ...] = ("inflection", "slots")
    paces: tuple[float, ...] = (0.2, 1.0, 3.0)
    answered: int = 48
    grid: tuple[float, ...] = GRID

    def fast(self) -> Skills:
        """Return a slice of it that runs in three minutes and says nothing about methods."""
        return replace(
            self,
            name=f"{self.name}-fast",
            skills=tuple(replace(skill, new_tokens=8) for skill in self.skills[:3]),
            base=Base(partial(smollm.write, layers=3), "smollm2-fast"),
            training=replace(self.training, steps=5, batch=4),
            validation=4,
            test=8,
            observed=tuple(skill.name for skill in self.skills[:1]),
            paces=(1.0,),
            answered=8,
            grid=(0.3, 1.0),
        )

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the results wants to know."""
        return {
            "name": self.name,
            "skills": {
                skill.name: {
                    "set": skill.source,
                    "instruction": skill.instruction,
                    "metric": skill.metric,
                    "new tokens": skill.new_tokens,
                }
                for skill in self.skills
            },
            "base": self.base.home,
            "training": self.training.config(),
            "targets": list(self.targets),
            "train": self.most_train,
            "validation": self.validation,
            "test": self.test,
            "grid": list(self.grid),
        }

    def training_facts(self, skill: Skill) -> dict[str, Any]:
        """Return what decides about an adapter besides its seed and how it is trained, for its marker."""
        asked = {"set": skill.source, "instruction": skill.instruction}
        return asked | {"base": self.base.home, "train": self.most_train, "longest": self.longest}

    def examples(self, skill: Skill, data: Path) -> dict[str, list[Example]]:
        """Return part -> examples of a skill."""
        return read(skill, data, {"train": self.most_train, "validation": self.validation, "test": self.test})

    def lm_folder(self, cache: Cache) -> Path:
        """Return where the LM lies; other suites use it too."""
        return cache.root.with_name(self.base.home)


SKILLS_8 = Skills()
