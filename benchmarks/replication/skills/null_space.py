"""The diagnosis: does the null-space ratio of each adapter fall with its scale, on its own prompts?"""

from __future__ import annotations

from pathlib import Path

import submerge
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.skills.merge import LORA, SkillsBench
from submerge.calibrate import Item

__all__ = ["NULL_SPACE", "diagnose"]

NULL_SPACE = "null-space"
HOOKS = {"last_quarter": "the last quarter of the layers", ".": "all layers"}
PROMPTS = 32


def diagnose(bench: SkillsBench) -> Result:
    """Return ω(λ) of each adapter on its own prompts, at the last layers and at all, and its warnings."""
    prompts = {
        skill.name: [
            Item(bench.chat.prompt(skill, one)) for one in bench.examples[skill.name]["train"][:PROMPTS]
        ]
        for skill in bench.suite.skills
    }

    def make(_: Path, result: Result) -> None:
        adapters = dict(zip(prompts, bench.models, strict=True))
        with timed(result, "seconds_in_all"):
            for hooks in HOOKS:
                curve = submerge.null_space_curve(bench.base, adapters, prompts, hooks=hooks)
                result[hooks] = {
                    "scales": list(curve.scales),
                    "values": dict(zip(curve.adapters, curve.values.tolist(), strict=True)),
                    "warnings": list(curve.warnings),
                }

    folder = bench.cache.result(bench.seed, LORA, NULL_SPACE)
    return cached(folder, bench.config({"measured": NULL_SPACE, "prompts": PROMPTS}), make)
