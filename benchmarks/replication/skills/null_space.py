"""The diagnosis: does the null-space ratio of each adapter fall with its scale, on its own prompts?"""

from __future__ import annotations

from pathlib import Path

import submerge
from benchmarks.replication.cache import Result, cached, timed
from benchmarks.replication.skills.merge import LORA, SkillsBench

__all__ = ["HOOKS", "NULL_SPACE", "diagnose"]

NULL_SPACE = "null-space"
HOOKS = {"last_quarter": "the last quarter of the layers", ".": "all layers"}
PROMPTS = 16
SCALES = (0.0, 0.5, 1.0)
"""A pass over the prompts of each skill for each of them, and for each choice of hooks."""


def diagnose(bench: SkillsBench) -> Result:
    """Return ω(λ) of each adapter on its own prompts, at the last layers and at all, and its warnings."""

    def make(_: Path, result: Result) -> None:
        prompts = bench.inputs(PROMPTS)
        with timed(result, "seconds_in_all"):
            for hooks in HOOKS:
                curve = submerge.null_space_curve(
                    bench.base, bench.adapters, prompts, scales=SCALES, hooks=hooks
                )
                result[hooks] = {
                    "scales": list(curve.scales),
                    "values": dict(zip(curve.adapters, curve.values.tolist(), strict=True)),
                    "warnings": list(curve.warnings),
                }

    folder = bench.cache.result(bench.seed, LORA, NULL_SPACE)
    return cached(folder, bench.config({"measured": NULL_SPACE, "prompts": PROMPTS, "scales": SCALES}), make)
