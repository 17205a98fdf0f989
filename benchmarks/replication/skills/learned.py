"""Merges whose coefficients are learned from prompts without answers (NSC and its rival `match`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submerge
from benchmarks.replication import cache as store
from benchmarks.replication.cache import Result
from benchmarks.replication.calibrated import SUM, Calibrated, measured
from benchmarks.replication.skills.chat import load
from benchmarks.replication.skills.merge import LORA, SkillsBench

__all__ = ["SHARED", "learn"]

SHARED: dict[str, Any] = {"batch_size": 4, "dtype": "float32"}
"""Of all rows. A step is a pass over such a batch of every skill."""


def learn(bench: SkillsBench, row: Calibrated) -> Result:
    """Return everything about one row: from the cache, or by learning, merging and testing.

    Only prompts are read, and nothing but the initial coefficient was tuned on validation items.
    """
    settings = {**SHARED, **row.settings, **_start(bench, row)}

    def learn_and_test(part: Path, result: Result) -> Path:
        learned = submerge.learn_coefficients(
            bench.base, bench.adapters, bench.inputs(row.inputs), **settings
        )
        learned.save(row.file(part))
        result["calibration"] = measured(learned)
        out = bench.merge(row, None, part)
        result["test"] = bench.scores(load(out, bench.base), "test")
        return out

    folder = bench.cache.result(bench.seed, LORA, row.name)
    facts = row.facts() | {"settings": settings}
    return bench.measured(folder, facts, learn_and_test, lambda result: bench.line(row.name, result))


def _start(bench: SkillsBench, row: Calibrated) -> Mapping[str, float]:
    """Return the scale of task arithmetic, for a row that starts there."""
    if not row.from_scale:
        return {}
    result = store.read(bench.cache.result(bench.seed, LORA, SUM))
    if result is None:
        raise SystemExit(f"{row.name} starts from the scale of {SUM}, which is not there yet: merge it first")
    return {"initial": result["scale"]}
