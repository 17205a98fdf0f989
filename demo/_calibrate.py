"""Coefficients of the adapters, learned from a few images of each task without their classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submerge
from _models import pixels
from _tasks import TUNED_TASKS, Split

__all__ = ["IMAGES", "learn"]

IMAGES = 64
"""Images of each task."""
BATCH = 16


def learn(
    base: Path, adapters: Mapping[str, Path], split: Split, settings: Mapping[str, Any], file: Path
) -> submerge.Calibration:
    """Learn how strongly each task's adapter is to act in each layer, and write it to a file."""
    data = {}
    for task in TUNED_TASKS:
        images = pixels(task.view(split.images[:IMAGES]))
        data[task.name] = [{"pixel_values": batch} for batch in images.split(BATCH)]
    calibration = submerge.learn_coefficients(base, adapters, data, batch_size=BATCH, **settings)
    calibration.save(file)
    return calibration
