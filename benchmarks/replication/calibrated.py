"""Merges of adapters whose coefficients are learned on unlabelled inputs: rows without a free scale.

The inputs are those of the validation items, without their labels, by which the scales of other rows are
chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.replication.cache import Result, read
from benchmarks.replication.methods import Merge
from benchmarks.replication.specialists import Specialists

__all__ = ["CALIBRATED", "Calibrated", "calibrate"]

FILE = "coefficients.json"
BATCH = 16
SUM = "task_arithmetic"


@dataclass(frozen=True)
class Calibrated(Merge):
    """A sum of updates by coefficients that are learned with these settings on `inputs` items of each task.

    With `from_scale` they start at the scale of task arithmetic, which was chosen by labels.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: int = 64
    from_scale: bool = False
    method: str = "nsc"
    kinds: tuple[str, ...] = ("lora",)
    form: str = "adapter"

    def facts(self) -> dict[str, Any]:
        """Return what decides about the result, for a marker."""
        own = {"settings": dict(self.settings), "inputs": self.inputs, "from_scale": self.from_scale}
        return super().facts() | own


_FORCED = {"where_rising": "learn"}
_FAST = {"learning_rate": 1e-2}
_MATCH = {"objective": "match"} | _FAST

CALIBRATED = (
    Calibrated("nsc_start", settings={"steps": 0}),
    Calibrated("nsc"),
    Calibrated("nsc_forced", settings=_FORCED),
    Calibrated("nsc_forced_fast", settings=_FORCED | _FAST),
    Calibrated("nsc_all_layers", settings=_FORCED | {"hooks": "."}),
    Calibrated("nsc_scale", settings=_FORCED, from_scale=True),
    Calibrated("nsc_scale_fast", settings=_FORCED | _FAST, from_scale=True),
    Calibrated("nsc_energy", settings=_FORCED | _FAST | {"objective": "energy"}, from_scale=True),
    Calibrated("match", settings=_MATCH, from_scale=True),
    Calibrated("match_all_layers", settings=_MATCH | {"hooks": "."}, from_scale=True),
    Calibrated("match_256", settings=_MATCH, inputs=256, from_scale=True),
)
"""NSC from 0.4 and from the tuned scale, with its guard and without, at two rates, and what rivals it."""


def calibrate(row: Calibrated, specialists: Specialists, part: Path) -> tuple[Path, Result]:
    """Return the file of a row's coefficients, and what they cost; it is made if it is not there."""
    file = part / FILE
    if not file.exists():
        adapters = dict(zip(specialists.tasks, specialists.models, strict=True))
        data = {task: _batches(specialists, task, row.inputs) for task in specialists.tasks}
        settings = dict(row.settings) | (_start(specialists) if row.from_scale else {})
        learned = submerge.learn_coefficients(
            specialists.base(), adapters, data, batch_size=BATCH, **settings
        )
        learned.save(file)
    return file, {}


def _batches(specialists: Specialists, task: str, count: int) -> list[dict[str, torch.Tensor]]:
    """Return the inputs of the first validation items of a task."""
    split = specialists.splits[task]
    items = specialists.domain.items(split.validation[:count], specialists.cache.base, split.kind)
    return [
        items.batch(list(range(start, min(start + BATCH, len(items)))))
        for start in range(0, len(items), BATCH)
    ]


def _start(specialists: Specialists) -> dict[str, float]:
    """Return the scale that task arithmetic was given by the labels of validation items."""
    result = read(specialists.result(SUM))
    if result is None:
        raise SystemExit(f"a row starts from the scale of {SUM}, which is not there yet: merge it first")
    return {"initial": result["scale"]}
