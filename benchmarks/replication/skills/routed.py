"""MASS on the decoder: one model of all adapters, which finds the skill of each prompt by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.replication.bench import weight_bytes
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.methods import Merge
from benchmarks.replication.skills.merge import LORA, SkillsBench
from benchmarks.replication.skills.tasks import Example, Skill

__all__ = ["MASS", "serve"]

MASS = "mass"
AT_ONCE = 32


def serve(bench: SkillsBench) -> Result:
    """Return the test scores of MASS with the skill unknown and known, and the share of right skills."""
    names = [skill.name for skill in bench.suite.skills]

    def make(part: Path, result: Result) -> None:
        with timed(result, "seconds_in_all"):
            recipe = Merge(MASS).named_recipe(bench.base, bench.models, names, LORA)
            settings = submerge.Settings(threads=bench.options.threads, max_memory=bench.memory)
            submerge.merge(recipe, part / "merged", settings=settings)
            model = submerge.load(part / "merged", dtype=torch.float32)
            result["bytes"] = weight_bytes(part / "merged")
            result["test"] = bench.scores(model, "test")
            result["named"] = {
                skill.name: bench.score(model, skill, "test", task=skill.name) for skill in bench.suite.skills
            }
            result["routed"] = {
                skill.name: _routed(bench, model, skill, names.index(skill.name))
                for skill in bench.suite.skills
            }
        shares = result["routed"].values()
        bench.say(f"seed {bench.seed} mass: routed {sum(shares) / len(shares):.3f}")

    folder = bench.cache.served(bench.seed, LORA, MASS)
    return cached(folder, bench.config({"method": MASS}), make)


@torch.inference_mode()
def _routed(bench: SkillsBench, model: Any, skill: Skill, number: int) -> float:
    """Return the share of a skill's test prompts that are routed to it."""
    examples: Sequence[Example] = bench.examples[skill.name]["test"]
    right = 0
    for at in range(0, len(examples), AT_ONCE):
        prompts = [bench.chat.prompt(skill, one) for one in examples[at : at + AT_ONCE]]
        right += int((model.route(**bench.chat.padded(prompts)).lead == number).sum())
    return right / len(examples)
