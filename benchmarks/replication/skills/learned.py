"""Merges whose coefficients are learned from prompts without answers (NSC), a row for each objective."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submerge
from benchmarks.replication.cache import Result
from benchmarks.replication.methods import Merge
from benchmarks.replication.skills.chat import load
from benchmarks.replication.skills.merge import LORA, SkillsBench

__all__ = ["LEARNED", "learn"]

LEARNED: Mapping[str, Mapping[str, Any]] = {
    "nsc": {},
    "nsc_learn": {"where_rising": "learn"},
    "nsc_match": {"objective": "match"},
}
"""Row -> what `learn_coefficients` is told. `nsc` keeps the coefficients of adapters whose ratio does not
fall with their scale, `nsc_learn` learns them all the same."""
PROMPTS = 64
SHARED = {"steps": 100, "learning_rate": 1e-3, "batch_size": 4, "dtype": "float32"}
"""Of all rows. A batch of four prompts a skill, for a step is a pass over eight skills."""
KEPT = ("loss", "curve", "kept", "warnings", "seconds", "seconds_per_step", "peak_memory_bytes")
"""What a result says of the calibration, besides its coefficients."""


def learn(bench: SkillsBench, name: str) -> Result:
    """Return everything about one row: from the cache, or by learning, merging and testing.

    Nothing is tuned on validation items.
    """
    settings = {**SHARED, **LEARNED[name]}

    def learn_and_test(part: Path, result: Result) -> Path:
        calibration = submerge.learn_coefficients(
            bench.base, bench.adapters, bench.prompts(PROMPTS), **settings
        )
        calibration.save(part / "coefficients.json")
        found = calibration.to_dict()
        result["calibration"] = {key: found[key] for key in KEPT}
        recipe = Merge("nsc", form="adapter").named_recipe(
            bench.base, bench.models, list(bench.adapters), LORA
        )
        out = bench.merge_recipe(recipe | {"coefficients": str(part / "coefficients.json")}, part)
        result["test"] = bench.scores(load(out, bench.base), "test")
        return out

    facts = {"method": "nsc", "settings": settings, "prompts": PROMPTS}
    folder = bench.cache.result(bench.seed, LORA, name)
    return bench.measured(folder, facts, learn_and_test, lambda result: bench.line(name, result))
