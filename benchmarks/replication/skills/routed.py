"""MASS on the decoder: one model of all adapters, which finds the skill of each prompt by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.replication.cache import Result
from benchmarks.replication.methods import Merge, write_recipe
from benchmarks.replication.skills.merge import LORA, SkillsBench
from benchmarks.replication.skills.tasks import Example

__all__ = ["MASS", "MASS_ROWS", "serve"]

MASS = "mass"
AT_ONCE = 32


@dataclass(frozen=True)
class MassRow:
    """How the router is used: with `settings`, and prompts without answers.

    `inputs` are how many of each skill the router is given: each number is routed with, and the last one
    scored. With `together` nobody says whose they are. With `named` the skill is named, too.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    together: bool = False
    named: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what decides about the result, for a marker."""
        own = {"settings": dict(self.settings), "inputs": list(self.inputs), "together": self.together}
        return {"method": MASS} | ({} if self.named else own)


MASS_ROWS = {
    MASS: MassRow("no reference", {"reference": "none"}, named=True),
    "mass_noise": MassRow("the default: scores count from those of noise"),
    "mass_together": MassRow("prompts of all skills together", inputs=(2, 32, 4), together=True),
    "mass_inputs": MassRow("prompts of each skill", inputs=(8, 32)),
}


def serve(bench: SkillsBench, name: str) -> Result:
    """Return the test scores of MASS with the skill unknown, and the share of right skills."""
    row, skills = MASS_ROWS[name], list(bench.adapters)

    def merge_and_test(part: Path, result: Result) -> Path:
        recipe = Merge(MASS).named_recipe(bench.base, bench.models, skills, LORA)
        out = bench.merge_by(write_recipe(recipe, part / "recipe.yaml"))
        for count in row.inputs:
            submerge.calibrate_router(out, _prompts(bench, count, together=row.together), samples=count)
            result.setdefault("routed_by", {})[str(count)] = _routed(bench, _load(out, row), name)
        model = _load(out, row)
        result["routed"] = _routed(bench, model, name)
        result["test"] = bench.scores(model, "test")
        if row.named:
            result["named"] = {
                skill.name: bench.score(model, skill, "test", task=skill.name) for skill in bench.suite.skills
            }
        return out

    folder = bench.cache.served(bench.seed, LORA, name)
    return bench.measured(folder, row.facts(), merge_and_test, lambda result: bench.line(name, result))


def _load(folder: Path, row: MassRow) -> Any:
    return submerge.load(folder, dtype=torch.float32, **row.settings)


def _prompts(bench: SkillsBench, count: int, *, together: bool) -> Any:
    """Return prompts of each skill, by its name or all together."""
    prompts = bench.inputs(count)
    return [one for own in prompts.values() for one in own] if together else prompts


@torch.inference_mode()
def _routed(bench: SkillsBench, model: Any, name: str) -> dict[str, float]:
    """Return the share of each skill's test prompts that are routed to it."""
    shares = {}
    for number, skill in enumerate(bench.suite.skills):
        examples: Sequence[Example] = bench.examples[skill.name]["test"]
        right = 0
        for at in range(0, len(examples), AT_ONCE):
            prompts = [bench.chat.prompt(skill, one) for one in examples[at : at + AT_ONCE]]
            right += int((model.route(**bench.chat.padded(prompts)).lead == number).sum())
        shares[skill.name] = right / len(examples)
    bench.say(f"seed {bench.seed} {name}: routed {sum(shares.values()) / len(shares):.3f}")
    return shares
