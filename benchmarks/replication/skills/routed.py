"""MASS on the decoder: one model of all adapters, which finds the skill of each prompt by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.replication.cache import Result
from benchmarks.replication.methods import Merge, write_recipe
from benchmarks.replication.skills.merge import LORA, SkillsBench
from benchmarks.replication.skills.tasks import Example, Skill

__all__ = ["MASS", "serve"]

MASS = "mass"
AT_ONCE = 32


def serve(bench: SkillsBench) -> Result:
    """Return the test scores of MASS with the skill unknown and known, and the share of right skills."""
    names = list(bench.adapters)

    def merge_and_test(part: Path, result: Result) -> Path:
        recipe = Merge(MASS).named_recipe(bench.base, bench.models, names, LORA)
        out = bench.merge_by(write_recipe(recipe, part / "recipe.yaml"))
        model = submerge.load(out, dtype=torch.float32)
        result["test"] = bench.scores(model, "test")
        result["named"] = {
            skill.name: bench.score(model, skill, "test", task=skill.name) for skill in bench.suite.skills
        }
        result["routed"] = {
            skill.name: _routed(bench, model, skill, number)
            for number, skill in enumerate(bench.suite.skills)
        }
        return out

    def line(result: Result) -> str:
        shares = result["routed"].values()
        return f"{bench.line(MASS, result)}, routed {sum(shares) / len(shares):.3f}"

    folder = bench.cache.served(bench.seed, LORA, MASS)
    return bench.measured(folder, {"method": MASS}, merge_and_test, line)


@torch.inference_mode()
def _routed(bench: SkillsBench, model: Any, skill: Skill, number: int) -> float:
    """Return the share of a skill's test prompts that are routed to it."""
    examples: Sequence[Example] = bench.examples[skill.name]["test"]
    right = 0
    for at in range(0, len(examples), AT_ONCE):
        prompts = [bench.chat.prompt(skill, one) for one in examples[at : at + AT_ONCE]]
        right += int((model.route(**bench.chat.padded(prompts)).lead == number).sum())
    return right / len(examples)
