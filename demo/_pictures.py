"""Three kinds of pictures that show a number, each of which becomes a task: digits, dials and gauges."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from _examples import Examples, load_examples
from _language import DIGITS
from _tasks import SIDE

__all__ = ["KINDS", "load_pictures"]

TRAINED, TESTED = 2000, 300
"""Drawn pictures to train on, and others to test on."""
KINDS = ("digit", "dial", "gauge")
"""The tasks, in the order in which they come."""


def load_pictures() -> tuple[Mapping[str, Examples], Mapping[str, Examples]]:
    """Return pictures to train on and pictures to test, of each kind; the same ones every time."""
    written, asked = (parts["image"] for parts in load_examples(1))
    trained = {"digit": written, **{kind: _drawn(kind, TRAINED, seed=0) for kind in _DRAW}}
    tested = {"digit": asked, **{kind: _drawn(kind, TESTED, seed=1) for kind in _DRAW}}
    return trained, tested


def _drawn(kind: str, count: int, seed: int) -> Examples:
    draw = np.random.default_rng(seed)
    numbers = draw.integers(DIGITS, size=count).tolist()
    shades = (_DRAW[kind](number, draw) + draw.normal(0, 0.05, (SIDE, SIDE)) for number in numbers)
    grey = [(255 * shade.clip(0, 1)).round().astype(np.uint8) for shade in shades]
    return Examples([Image.fromarray(one) for one in grey], numbers)


def _dial(number: int, draw: np.random.Generator) -> np.ndarray:
    """Return a bright hand on grey, whose angle is a tenth of a turn for each unit."""
    angle = 2 * np.pi * (number + draw.uniform(-0.2, 0.2)) / DIGITS
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    along, across = x * np.cos(angle) + y * np.sin(angle), x * np.sin(angle) - y * np.cos(angle)
    hand = np.exp(-(across**2)) * (along > 0)
    return 0.4 + draw.uniform(0.4, 0.6) * hand


def _gauge(number: int, draw: np.random.Generator) -> np.ndarray:
    """Return a dark column on white, which rises with the number."""
    level = (number + 0.5 + draw.uniform(-0.2, 0.2)) / DIGITS * SIDE
    rows = np.clip(level - np.arange(SIDE)[::-1], 0, 1)  # how much of each row is filled, from below
    shade = np.ones((SIDE, SIDE))
    left = int(draw.integers(1, SIDE - 3))
    shade[:, left : left + 3] -= draw.uniform(0.7, 0.9) * rows[:, None]
    return shade


_DRAW: Mapping[str, Callable[[int, np.random.Generator], np.ndarray]] = {"dial": _dial, "gauge": _gauge}
