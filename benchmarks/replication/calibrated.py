"""Sums of adapters by coefficients that are learned on unlabelled inputs: rows without a free scale.

The inputs are those of the validation items, by whose labels the scales of other rows are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import submerge
from benchmarks.replication.cache import Result, read
from benchmarks.replication.methods import Merge
from benchmarks.replication.specialists import Specialists

__all__ = ["CALIBRATED", "SUM", "Calibrated", "calibrate", "calibrated_rows", "measured"]

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

    def file(self, folder: Path) -> Path:
        """Return where the coefficients lie, in the folder of the recipe."""
        return folder / FILE

    def write(
        self, path: Path, base: Path, models: Sequence[Path], scale: float | None = None, kind: str = "lora"
    ) -> Path:
        """Write the recipe, which names the coefficients beside it, as YAML; return its path."""
        recipe = self.recipe(base, models, scale, kind) | {"coefficients": str(self.file(path.parent))}
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    def facts(self) -> dict[str, Any]:
        """Return what decides about the result, for a marker."""
        own = {"settings": dict(self.settings), "inputs": self.inputs, "from_scale": self.from_scale}
        return super().facts() | own


_FORCED = {"where_rising": "learn"}
_MATCH = {"objective": "match", "learning_rate": 1e-2}

CALIBRATED = (
    Calibrated("nsc_start", settings={"steps": 0}),
    Calibrated("nsc"),
    Calibrated("nsc_forced", settings=_FORCED),
    Calibrated("nsc_scale", from_scale=True),
    Calibrated("nsc_scale_forced", settings=_FORCED, from_scale=True),
    Calibrated("nsc_scale_fast", settings=_FORCED | {"learning_rate": 1e-2}, from_scale=True),
    Calibrated("nsc_energy", settings=_FORCED | {"objective": "energy"}, from_scale=True),
    Calibrated("match", settings=_MATCH),
    Calibrated("match_scale", settings=_MATCH, from_scale=True),
    Calibrated("match_all_layers", settings=_MATCH | {"hooks": "."}, from_scale=True),
    Calibrated("match_16", settings=_MATCH, inputs=16, from_scale=True),
    Calibrated("match_256", settings=_MATCH, inputs=256, from_scale=True),
)
"""NSC from 0.4 and from the tuned scale, with its guard and without; and the objective that rivals it."""


def calibrated_rows(kind: str, names: Sequence[str] | None = None) -> list[Calibrated]:
    """Return the rows of adapters, all or those named; of full fine-tunes there are none."""
    return [row for row in CALIBRATED if kind in row.kinds and (names is None or row.name in names)]


def calibrate(row: Calibrated, specialists: Specialists, file: Path) -> Result:
    """Write a row's coefficients to a file; return what that cost."""
    adapters = dict(zip(specialists.tasks, specialists.models, strict=True))
    data = {task: specialists.batches(task, row.inputs) for task in specialists.tasks}
    settings = dict(row.settings) | (_start(specialists) if row.from_scale else {})
    learned = submerge.learn_coefficients(specialists.base(), adapters, data, batch_size=BATCH, **settings)
    learned.save(file)
    return measured(learned)


def measured(learned: submerge.Calibration) -> Result:
    """Return what a result says of a calibration, besides its coefficients."""
    curve = zip(learned.curve.adapters, learned.curve.values, strict=True)
    return {
        "initial": learned.initial,
        "loss": [learned.loss[0], learned.loss[-1]],
        "kept": list(learned.kept),
        "curve": {name: row.tolist() for name, row in curve},
        "seconds": learned.seconds,
    }


def _start(specialists: Specialists) -> dict[str, float]:
    """Return the scale that task arithmetic was given by the labels of validation items."""
    result = read(specialists.result(SUM))
    if result is None:
        raise SystemExit(f"rows start from the scale of {SUM}, which is not there yet: merge it first")
    return {"initial": result["scale"]}
