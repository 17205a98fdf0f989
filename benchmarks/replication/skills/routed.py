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
from benchmarks.replication.skills.tasks import Example

__all__ = ["INPUTS", "MASS", "MASS_INPUTS", "serve"]

MASS = "mass"
MASS_INPUTS = "mass_inputs"
INPUTS = (8, 128, 32)
"""How many prompts of each skill the router is given; the last number is that of the scored model."""
AT_ONCE = 32


def serve(bench: SkillsBench, row: str) -> Result:
    """Return the test scores of MASS with the skill unknown, and the share of right skills.

    The row `mass` has no data, and is scored with the skill named, too. `mass_inputs` has prompts of each
    skill without answers: `submerge.calibrate_router`.
    """
    names = list(bench.adapters)

    def merge_and_test(part: Path, result: Result) -> Path:
        recipe = Merge(MASS).named_recipe(bench.base, bench.models, names, LORA)
        out = bench.merge_by(write_recipe(recipe, part / "recipe.yaml"))
        if row == MASS_INPUTS:
            result["routed_by"] = {str(count): _calibrate_and_route(bench, out, count) for count in INPUTS}
        model = _load(out)
        result["routed"] = _routed(bench, model)
        result["test"] = bench.scores(model, "test")
        if row == MASS:
            result["named"] = {
                skill.name: bench.score(model, skill, "test", task=skill.name) for skill in bench.suite.skills
            }
        return out

    def line(result: Result) -> str:
        shares = result["routed"].values()
        return f"{bench.line(row, result)}, routed {sum(shares) / len(shares):.3f}"

    facts = {"method": MASS} | ({"inputs": list(INPUTS)} if row == MASS_INPUTS else {})
    return bench.measured(bench.cache.served(bench.seed, LORA, row), facts, merge_and_test, line)


def _load(folder: Path) -> Any:
    return submerge.load(folder, dtype=torch.float32)


def _calibrate_and_route(bench: SkillsBench, folder: Path, count: int) -> dict[str, float]:
    """Calibrate the router of a folder by prompts of each skill; return what `_routed` says then."""
    submerge.calibrate_router(folder, bench.prompts(count), samples=count)
    shares = _routed(bench, _load(folder))
    bench.say(f"seed {bench.seed}, {count} prompts a skill: routed {sum(shares.values()) / len(shares):.3f}")
    return shares


@torch.inference_mode()
def _routed(bench: SkillsBench, model: Any) -> dict[str, float]:
    """Return the share of each skill's test prompts that are routed to it."""
    shares = {}
    for number, skill in enumerate(bench.suite.skills):
        examples: Sequence[Example] = bench.examples[skill.name]["test"]
        right = 0
        for at in range(0, len(examples), AT_ONCE):
            prompts = [bench.chat.prompt(skill, one) for one in examples[at : at + AT_ONCE]]
            right += int((model.route(**bench.chat.padded(prompts)).lead == number).sum())
        shares[skill.name] = right / len(examples)
    return shares
