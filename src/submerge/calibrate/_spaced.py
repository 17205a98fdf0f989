"""Some of many inputs: evenly spaced, for data is often sorted, as by classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from submerge.calibrate._collect import ModelInputs
from submerge.errors import Problem, RequestError, few

__all__ = ["count_items", "spaced", "spaced_rows"]

Value = TypeVar("Value")


def spaced(values: Sequence[Value], most: int | None) -> list[Value]:
    """Return at most so many values, evenly spaced from the first on; all where `most` is None.

    Examples:
        >>> from submerge.calibrate._spaced import spaced
        >>> spaced("abcdef", 3), spaced("abcdef", 4), spaced("ab", 3)
        (['a', 'c', 'e'], ['a', 'b', 'd', 'e'], ['a', 'b'])
    """
    if most is None or len(values) <= most:
        return list(values)
    return [values[number * len(values) // most] for number in range(most)]


def count_items(batch: ModelInputs) -> int:
    """Return how many inputs a batch has: rows of its texts where it has some, as images may have several."""
    return len(batch["input_ids"] if "input_ids" in batch else next(iter(batch.values())))


def spaced_rows(batches: Sequence[ModelInputs], most: int | None) -> list[ModelInputs]:
    """Return batches of at most so many of all their inputs, evenly spaced; those without any are left out.

    Raises `RequestError` where some of a batch are to be taken, and not all of it has a row for each.
    """
    sizes = [count_items(batch) for batch in batches]
    places = [(place, row) for place, size in enumerate(sizes) for row in range(size)]
    chosen: dict[int, list[int]] = {}
    for place, row in spaced(places, most):
        chosen.setdefault(place, []).append(row)
    return [_rows(batches[place], rows, sizes[place]) for place, rows in chosen.items()]


def _rows(batch: Mapping[str, Any], rows: Sequence[int], size: int) -> Mapping[str, Any]:
    if len(rows) == size:
        return batch
    if other := sorted(name for name, tensor in batch.items() if len(tensor) != size):
        what = (
            f"{len(rows)} of a batch's {size} inputs are to be read, and {few(other)} has not a row for each"
        )
        raise RequestError(Problem(what, "samples", "give batches of one input each"))
    return {name: tensor[list(rows)] for name, tensor in batch.items()}
