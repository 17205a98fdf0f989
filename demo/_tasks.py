"""The images, and the tasks: each is another view of the same hand-written digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits

__all__ = ["BASE_TASK", "CLASSES", "SIDE", "TASKS", "TUNED_TASKS", "Split", "Task", "load_splits"]

SIDE = 8
"""Pixels along one side of an image."""
CLASSES = 10
TRAIN, VALIDATION = 1000, 300
"""Images in these splits; the remaining 497 are the test."""


@dataclass(frozen=True)
class Split:
    """Upright images, shape [n, 1, 8, 8], values in [0, 1], and their classes, shape [n]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A name, and what is done to an upright image before the model sees it."""

    name: str
    view: Callable[[torch.Tensor], torch.Tensor]


def _embolden(images: torch.Tensor) -> torch.Tensor:
    """Make every stroke one pixel thicker."""
    return torch.nn.functional.max_pool2d(torch.nn.functional.pad(images, (1, 0, 1, 0)), 2, stride=1)


BASE_TASK = Task("upright", lambda images: images)
TUNED_TASKS = (
    Task("rotated", lambda images: torch.rot90(images, 1, (2, 3))),
    Task("mirrored", lambda images: images.flip(3)),
    Task("inverted", lambda images: 1 - images),
    Task("bold", _embolden),
)
TASKS = (BASE_TASK, *TUNED_TASKS)


def load_splits() -> tuple[Split, Split, Split]:
    """Return training, validation and test digits; the same ones every time."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = order.split([TRAIN, VALIDATION, len(order) - TRAIN - VALIDATION])
    train, validation, test = (Split(images[part], labels[part]) for part in parts)
    return train, validation, test
