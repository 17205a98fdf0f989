"""What a few images of each task, without their classes, say about merging the adapters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import submerge
from _models import pixels
from _tasks import TUNED_TASKS, Split

__all__ = ["IMAGES", "grow", "learn"]

IMAGES = 64
"""Images of each task."""
BATCH = 16


def learn(
    base: Path, adapters: Mapping[str, Path], split: Split, settings: Mapping[str, Any], file: Path
) -> submerge.Calibration:
    """Learn how strongly each task's adapter is to act in each layer, and write it to a file."""
    calibration = submerge.learn_coefficients(base, adapters, _inputs(split), batch_size=BATCH, **settings)
    calibration.save(file)
    return calibration


def grow(base: Path, adapters: Mapping[str, Path], split: Split, state: Path, out: Path) -> None:
    """Add the adapters to a state one after another, and export their merge by least squares (LPM)."""
    shutil.rmtree(state, ignore_errors=True)
    grown = submerge.Continual.begin(state, str(base))
    for task, images in _inputs(split).items():
        grown.add(task, adapters[task], images)
    grown.export(out, overwrite=True)


def _inputs(split: Split) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Return task -> batches of its images."""
    images = {task.name: pixels(task.view(split.images[:IMAGES])) for task in TUNED_TASKS}
    return {name: [{"pixel_values": batch} for batch in every.split(BATCH)] for name, every in images.items()}
