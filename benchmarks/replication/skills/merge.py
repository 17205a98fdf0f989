"""Merges the adapters of a seed by every method, tunes each on validation, reads the test once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.console import Say, silent
from benchmarks.replication import cache as store
from benchmarks.replication.bench import MergeOptions, Scores
from benchmarks.replication.cache import Cache, Result, cached, trained
from benchmarks.replication.methods import Merge
from benchmarks.replication.scores import summary
from benchmarks.replication.sequence import SequenceBench
from benchmarks.replication.skills.chat import Chat, load
from benchmarks.replication.skills.suite import START, Skills
from benchmarks.replication.skills.tasks import Skill
from benchmarks.replication.specialists import MEMORY
from submerge.calibrate import Item

__all__ = ["LORA", "REFERENCES", "SkillsBench"]

LORA = "lora"
REFERENCES = ("base", "individual")
PARTS = ("validation", "test")


class SkillsBench(SequenceBench):
    """The adapters of one seed, the examples of all skills, and what the LM scores on them."""

    memory = MEMORY  # beside what learning coefficients leaves in this process
    samples = 128

    def __init__(
        self, suite: Skills, cache: Cache, seed: int, data: Path, options: MergeOptions, say: Say = silent
    ) -> None:
        models = [cache.specialist(seed, LORA, skill.name) for skill in suite.skills]
        super().__init__(suite.lm_folder(cache), models, LORA, options, say)
        self.suite, self.cache, self.seed = suite, cache, seed
        self.asked = {name: suite.facts()[name] for name in ("skills", "validation", "test")}
        self.facts = {"trained": trained(models, f"seed {seed}"), **self.asked}
        self.chat = Chat(self.base)
        self.examples = {skill.name: suite.examples(skill, data) for skill in suite.skills}

    @property
    def adapters(self) -> dict[str, Path]:
        """Return skill -> the folder of its adapter."""
        return dict(zip(self.examples, self.models, strict=True))

    @property
    def state(self) -> Path:
        return self.cache.result(self.seed, LORA, "state")

    def inputs(self, count: int) -> dict[str, list[Item]]:
        """Return skill -> training prompts without answers."""
        return {
            skill.name: [
                Item(self.chat.prompt(skill, one)) for one in self.examples[skill.name]["train"][:count]
            ]
            for skill in self.suite.skills
        }

    def grid(self, row: Merge) -> tuple[float, ...]:
        """Return the scales that are tried for a row, higher ones too where it asks for them."""
        return (*self.options.grid, *row.higher) if row.factor else ()

    def score(self, model: Any, skill: Skill, part: str, **more: Any) -> float:
        """Return the mean score of a model's answers; what else is given goes to `generate`."""
        return self.chat.score(model, skill, self.examples[skill.name][part], **more)

    def scores(self, model: Any, part: str) -> Scores:
        """Return skill -> score of one model."""
        return {skill.name: self.score(model, skill, part) for skill in self.suite.skills}

    def reference(self, name: str) -> Result:
        """Return the scores of what is no merge: the base, or each adapter on its own skill."""
        if name == "base":  # the same for all seeds
            config = {"base": self.suite.base.home, **self.asked}
            return cached(self.cache.root / "base-results", config, self._base)
        folder = self.cache.result(self.seed, LORA, name)
        return cached(folder, self.config({"reference": name}), self._individual)

    def _base(self, _: Path, result: Result) -> None:
        model = load(self.base)
        for part in PARTS:
            result[part] = self.scores(model, part)
        self.say(f"base: {_shown(result['test'])}")

    def _individual(self, _: Path, result: Result) -> None:
        result |= {part: {} for part in PARTS}
        for folder, skill in zip(self.models, self.suite.skills, strict=True):
            model = load(folder, self.base)
            for part in PARTS:
                result[part][skill.name] = self.score(model, skill, part)
        self.say(f"seed {self.seed} individual: {_shown(result['test'])}")

    def run(self, row: Merge) -> Result:
        """Return everything about one method: from the cache, or by tuning and testing it."""
        individual = self.reference("individual")

        def tune_and_test(part: Path, result: Result) -> Path:
            def validate(scale: float | None) -> Scores:
                scores = self.scores(load(self.merge(row, scale, part), self.base), "validation")
                mean = summary(scores, individual["validation"])["mean"]
                self.say(f"seed {self.seed} {row.name} × {scale}: validation {100 * mean:.1f}")
                return scores

            def summarised(scores: Scores) -> dict[str, Any]:
                return summary(scores, individual["validation"])

            result |= self.choose(row, validate, summarised, near=self._near(row))
            out = self.merge(row, result.get("scale"), part)
            result["test"] = self.scores(load(out, self.base), "test")
            return out

        facts = row.facts() | {"grid": list(self.grid(row))}
        folder = self.cache.result(self.seed, LORA, row.name)
        return self.measured(folder, facts, tune_and_test, lambda result: self.line(row.name, result))

    def line(self, name: str, result: Result) -> str:
        """Return what is printed of a row."""
        tested = summary(result["test"], self.reference("individual")["test"])
        return f"seed {self.seed} {name}: {tested['mean']:.3f}, worst {tested['worst']:.3f}"

    def _near(self, row: Merge) -> float | None:
        """Return where the search for a scale begins: at the first seed's, or where the method usually is.

        An evaluation takes minutes, and so does each scale.
        """
        first = store.read(self.cache.result(0, LORA, row.name)) if self.seed else None
        start = first.get("scale") if first else START.get(row.name)
        return start if start in self.grid(row) else None


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * score:.0f}" for name, score in scores.items())
