"""How a task's inputs are run, and which of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from submerge.calibrate import count_items, is_batch
from submerge.device import check_device
from submerge.errors import Problem, RequestError, few

__all__ = ["Data", "Passes", "check_count", "limited"]

Data: TypeAlias = Any
"""What `submerge.null_space_ratio` takes as one data set, or a `MeasuredTask`."""


@dataclass(frozen=True)
class Passes:
    """How a task's inputs are run: how many of them, in which batches, where, and in how much memory.

    Attributes:
        samples: the most inputs that are read; all by default.
        batch_size: of a pass.
        max_length: tokens of a text.
        device: where the model runs.
        room: bytes that moments may take at a time; what is more is measured in several passes over the data.
        processor: what encodes the inputs; that of the base's folder by default.
    """

    samples: int | None = None
    batch_size: int = 16
    max_length: int = 512
    device: str = "cpu"
    room: int = 3 * 10**9
    processor: Any = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        for name in ("samples", "batch_size", "max_length"):
            check_count(name, getattr(self, name))


def check_count(name: str, value: int | None) -> None:
    """Raise `RequestError` where an option is neither left out nor a whole number from 1."""
    if value is not None and (not isinstance(value, int) or value < 1):
        option = f"--{name.replace('_', '-')}"
        raise RequestError(Problem(f"{value!r} is no whole number from 1", option, "give such as 16"))


def limited(data: Data, samples: int | None) -> Data:
    """Return the first inputs of a data set."""
    if samples is None:
        return data
    if isinstance(data, (str, Path)):
        return {"path": str(data), "limit": samples}
    if isinstance(data, Mapping):
        return {**data, "limit": min(samples, data.get("limit") or samples)}
    return list(_first(data, samples))


def _first(data: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield the first inputs, of which a batch of tensors by name has several: the last one is cut."""
    left = samples
    for value in data:
        batch = is_batch(value)
        own = _cut(value, left) if batch else value
        yield own
        left -= count_items(own) if batch else 1
        if left <= 0:
            return


def _cut(batch: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """Return the first inputs of a batch; raise `RequestError` where not all of it has a row for each."""
    count = count_items(batch)
    if count <= most:
        return batch
    if other := sorted(name for name, tensor in batch.items() if len(tensor) != count):
        what = f"{most} of a batch's {count} inputs are to be read, and {few(other)} has not a row for each"
        raise RequestError(Problem(what, "--samples", "give smaller batches"))
    return {name: tensor[:most] for name, tensor in batch.items()}
