"""Follows adapters of skills while they are trained: null-space ratio and quality, by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.console import Say, silent
from benchmarks.replication import observation
from benchmarks.replication.cache import Cache, Result, cached, timed
from benchmarks.replication.rows import seed_of
from benchmarks.replication.skills.chat import Chat, load
from benchmarks.replication.skills.specialists import conversations, fit, untrained
from benchmarks.replication.skills.suite import Skills
from benchmarks.replication.skills.tasks import Skill
from benchmarks.replication.suite import Training

__all__ = ["QUALITY", "about", "follow", "trainings"]

PROMPTS = 16
QUALITY = "score"


def about(suite: Skills) -> str:
    """Return on what ratio and quality are measured."""
    return f"ω is measured on {PROMPTS} validation prompts, quality on the answers to {suite.answered}."


def trainings(suite: Skills) -> list[tuple[Skill, Training]]:
    """Return the observed skills, each with its trainings."""
    named = {skill.name: skill for skill in suite.skills}
    chosen = [name for name in suite.observed if name in named]
    return [(named[name], one) for name, one in observation.trainings(suite.training, chosen, suite.paces)]


def follow(
    suite: Skills,
    cache: Cache,
    skill: Skill,
    training: Training,
    seed: int,
    data: Path,
    say: Say = silent,
) -> Result:
    """Train an adapter, unless the cache has what was seen of it; return its ratios and scores by step."""
    saved = observation.saved_steps(training.steps)
    config: dict[str, Any] = suite.training_facts(skill) | {"skill": skill.name, "seed": seed}
    config |= {"training": training.config(), "targets": list(suite.targets), "steps": saved}
    config |= {"prompts": PROMPTS, "answered": suite.answered, "new tokens": skill.new_tokens}
    config |= {"lambdas": list(observation.LAMBDAS), "hooks": list(observation.EVERYWHERE)}
    base, held_out = suite.lm_folder(cache), replace(suite, validation=suite.answered)

    def make(part: Path, measured: Result) -> None:
        adapters = {step: part / f"step{step}" for step in saved}
        draw = seed_of("skills", skill.name, seed)
        adapter = untrained(base, training, suite.targets, draw)

        def after(step: int) -> None:
            if step in adapters:
                adapter.save_pretrained(adapters[step])

        with timed(measured):
            fit(adapter, conversations(held_out, base, skill, data), training, draw, say, after)
        with timed(measured, "seconds_in_all"):
            measured |= _measured(held_out, base, skill, data, adapters)

    folder = cache.root / f"seed{seed}" / "observation" / f"{skill.name}-{training.rate:g}"
    return cached(folder, config, make)


def _measured(suite: Skills, base: Path, skill: Skill, data: Path, adapters: Mapping[int, Path]) -> Result:
    """Return the ratios on the first prompts, and the scores of the answers to all, also of the base."""
    chat, lm = Chat(base), load(base)
    examples = suite.examples(skill, data)["validation"]
    prompts = [chat.prompt(skill, example) for example in examples[:PROMPTS]]
    found = observation.omegas(lm, adapters, {"": [chat.padded(prompts, "right")]}, observation.EVERYWHERE)
    places = {0: base} | dict(adapters)
    scores = {step: chat.score(load(place, base), skill, examples) for step, place in places.items()}
    return found | {"accuracy": scores}
