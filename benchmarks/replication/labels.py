"""Labels of any kind as what trainings and scores take: classes from 0, or numbers in [0, 1]."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from benchmarks.replication.rows import CLASSES, SCORE, Rows, SuiteTask

__all__ = ["numbered"]


def numbered(task: SuiteTask, pool: Rows, test: Rows) -> tuple[Rows, Rows, tuple[Any, ...]]:
    """Return the rows with classes numbered from 0 in the order of their names, and the names.

    Names are texts, or whole numbers with gaps or without. Of other kinds of task labels are checked, and
    there are no names. Ends the program with what is wrong, and in which row.
    """
    for part, rows in (("training", pool), ("test", test)):
        if not rows:
            raise SystemExit(f"{task.name}: there are no {part} rows")
        for place, row in enumerate(rows):
            if what := _fault(task.kind, row[2]):
                raise SystemExit(f"{task.name}: {part} row {place}: {what}; the row is {_short(row)}")
    if task.kind != CLASSES:
        return pool, test, ()
    labels = {row[2] for row in (*pool, *test)}
    if len({isinstance(label, str) for label in labels}) > 1:
        mixed = _short(sorted(labels, key=str))
        raise SystemExit(f"{task.name}: some labels are texts and some are numbers: {mixed}")
    names = tuple(sorted(labels))
    if len(names) < 2:
        raise SystemExit(f"{task.name}: all rows have the label {names[0]!r}: there is nothing to learn")
    if unseen := sorted(labels - {row[2] for row in pool}):
        raise SystemExit(f"{task.name}: no training row has the labels {_short(unseen)} of the test")
    place = {name: number for number, name in enumerate(names)}
    return _replaced(pool, place), _replaced(test, place), names


def _replaced(rows: Rows, numbers: dict[Any, int]) -> Rows:
    return [(first, second, numbers[label]) for first, second, label in rows]


def _fault(kind: str, label: Any) -> str:
    """Return what is wrong with a label, or nothing."""
    shown = f"the label {_short(label)}"
    if kind == CLASSES:
        if isinstance(label, (str, Integral)):
            return ""
        number = isinstance(label, Real)
        hint = "for a task of numbers say kind=SCORE" if number else "write texts or whole numbers"
        return f"{shown} is no class: {hint}"
    if kind == SCORE:
        fits = isinstance(label, Real) and math.isfinite(label) and 0 <= label <= 1
        return "" if fits else f"{shown} is no number in [0, 1]: scale the scores"
    return (
        "" if isinstance(label, (bytes, bytearray)) else f"{shown} is no bytes, one for each pixel of a mask"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
