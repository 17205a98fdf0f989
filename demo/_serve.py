"""MASS: the fine-tunes as one model that finds out for each image which of them it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import submerge
from _models import pixels
from _tasks import TASKS, TUNED_TASKS, Split

__all__ = ["Answers", "answers"]


@dataclass(frozen=True)
class Answers:
    """Accuracies on all tasks, and the share of the fine-tunes' images that met their own, in percent."""

    accuracies: dict[str, float]
    own: float


@torch.no_grad()
def answers(folder: Path, split: Split, size: int) -> Answers:
    """Return how the folder's model answers when nobody names a task, for images in groups of one task.

    The base's own images are of none of its tasks, and get the fine-tune that looks nearest.
    """
    model = submerge.load(folder)
    right, own = {}, []
    for task in TASKS:
        group = torch.arange(len(split)) // size
        out = model(pixel_values=pixels(task.view(split.images)), group=group)
        right[task.name] = 100 * (out.logits.argmax(1) == split.labels).float().mean().item()
        own += [100 * (one == task.name) for one in out.tasks if task in TUNED_TASKS]
    return Answers(right, sum(own) / len(own))
