"""What a task is made of: rows with labels of a kind, and where they come from."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = [
    "CLASSES",
    "DENSE",
    "PARQUET",
    "SCORE",
    "HubSet",
    "Row",
    "Rows",
    "SuiteTask",
    "one_fifth_apart",
    "seed_of",
]

CLASSES, SCORE, DENSE = "classes", "score", "dense"
"""Kinds of task: one class out of several, scored by accuracy; a number in [0, 1], scored by Pearson's r;
such a number for every place of the input, scored by Pearson's r over all of them."""

Row = tuple[str | bytes, str | None, str | int | float | bytes]
"""A sentence, a second one or None; or the bytes of a picture and None. Then the class, the score in [0, 1],
or 0 or 1 for every pixel."""
Rows = list[Row]


PARQUET = "refs/convert/parquet"
"""The Hub's own conversion, for sets that come as a script."""


@dataclass(frozen=True)
class HubSet:
    """The Hugging Face data set that a task stands for, and which of its columns are read.

    `scale` turns the label into the score in [0, 1]: (label − scale[0]) / (scale[1] − scale[0]).
    """

    repo: str
    columns: tuple[str, ...]
    label: str
    train: str = "train"
    test: str = "test"
    config: str | None = None
    revision: str | None = None
    scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class SuiteTask:
    """A name, how its rows are read from the folder of data, and the set on the Hub that it stands for.

    `hub` is None where there is no such set that would give the same task. Labels of classes may be texts or
    any whole numbers.
    """

    name: str
    read: Callable[[Path], tuple[Rows, Rows]]
    hub: HubSet | None = None
    kind: str = CLASSES


def one_fifth_apart(rows: Rows) -> tuple[Rows, Rows]:
    """Return four fifths and one fifth of a set that has no test of its own, always the same."""
    order = np.random.default_rng(0).permutation(len(rows))
    cut = len(rows) // 5
    return [rows[i] for i in order[cut:]], [rows[i] for i in order[:cut]]


def seed_of(*parts: object) -> int:
    """Return a seed that depends on the parts and on nothing else, so that every task draws its own."""
    return zlib.crc32("/".join(map(str, parts)).encode())
