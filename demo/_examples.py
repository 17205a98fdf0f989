"""Handwritten digits as pictures, and spoken ones as sounds: to train on, and others to ask about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from _language import DIGITS
from _sounds import spoken
from _tasks import Split, load_splits
from _train import vary

__all__ = ["SOUNDS", "Examples", "load_examples"]

VARIANTS, SOUNDS, TESTED = 3, 2000, 300
"""Moved and turned copies of each picture, sounds to train on, and sounds to test on."""


@dataclass(frozen=True)
class Examples:
    """Images or sounds, and the numbers that they show or say."""

    inputs: list[Any]
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def first(self, count: int) -> Examples:
        """Return the first of them."""
        return Examples(self.inputs[:count], self.numbers[:count])

    def one(self, number: int, draw: np.random.Generator) -> Any:
        """Return an image that shows a number, or a sound that says it."""
        return self.inputs[draw.choice(np.flatnonzero(np.array(self.numbers) == number))]


def load_examples(sounds: int) -> tuple[Mapping[str, Examples], Mapping[str, Examples]]:
    """Return examples to train on and examples to test, of each modality; the same ones every time.

    The tests are pictures and speakers that no training has met.
    """
    train, _, test = load_splits()
    draw = torch.Generator().manual_seed(0)
    varied = torch.cat([train.images, *(vary(train.images, draw, 0) for _ in range(VARIANTS))])
    pictures = Split(varied, train.labels.repeat(1 + VARIANTS))
    heard, asked = _sounds(sounds, seed=0), _sounds(TESTED, seed=1)
    return {"image": _pictures(pictures), "audio": heard}, {"image": _pictures(test), "audio": asked}


def _pictures(split: Split) -> Examples:
    grey = (255 * split.images[:, 0].clamp(0, 1)).round().byte().numpy()
    return Examples([Image.fromarray(one) for one in grey], split.labels.tolist())


def _sounds(count: int, seed: int) -> Examples:
    draw = np.random.default_rng(seed)
    numbers = draw.integers(DIGITS, size=count).tolist()
    return Examples([spoken(number, draw) for number in numbers], numbers)
