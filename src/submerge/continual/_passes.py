"""How a task's inputs are run, and which of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from submerge.arguments import check_fields
from submerge.calibrate import check_counts
from submerge.deferred import torch
from submerge.device import check_device
from submerge.errors import Problem, RequestError, did_you_mean

__all__ = ["Data", "Passes", "check_options", "option"]

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
    device: str | torch.device = "cpu"
    room: int = 3 * 10**9
    processor: Any = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        check_options({name: getattr(self, name) for name in ("samples", "batch_size", "max_length")})
        check_fields(self)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Passes:
        """Return what arguments of these names say; raise `RequestError` where there is none of a name."""
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in given if name not in names]:
            hint = did_you_mean(unknown[0], names)
            raise RequestError(Problem(f"there is no argument {unknown[0]!r}", "", hint))
        return cls(**given)

    @property
    def given(self) -> dict[str, Any]:
        """What is not as by default, by name, but for the progress."""
        others = [field for field in fields(self) if field.name != "progress"]
        return {one.name: value for one in others if (value := getattr(self, one.name)) != one.default}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `RequestError`, under the names of the command's options, for what is no whole number from 1."""
    check_counts({option(name): value for name, value in options.items()})


def option(argument: str) -> str:
    """Return what the command calls an argument: `--batch-size` for `batch_size`."""
    return f"--{argument.replace('_', '-')}"
