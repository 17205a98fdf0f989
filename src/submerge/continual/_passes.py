"""How a task's inputs are run, and which of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from submerge.device import check_device
from submerge.errors import Problem, RequestError

__all__ = ["Data", "Passes", "check_count"]

Data: TypeAlias = Any
"""What `submerge.null_space_ratio` takes as one data set, or a `MeasuredTask`."""


@dataclass(frozen=True)
class Passes:
    """How a task's inputs are run: how many of them, in which batches, where, and in how much memory.

    Attributes:
        samples: the most inputs that run, evenly spaced over the data; all by default.
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
