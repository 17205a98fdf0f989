"""What a finished merge says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["MergeReport", "Progress"]


@dataclass(frozen=True)
class MergeReport:
    """The result of `merge`: where it is, what it cost, and what deserves a look.

    `bytes_read` counts every pass; `seconds` is wall time. `reading` and `writing` are the shares of
    the workers' time spent waiting for the file system, in [0, 1]. `nonfinite` maps a tensor to what
    holds NaN or Inf in it, `differs` a kept tensor to the models whose values are other than the base's,
    `figures` a matrix to what its method says of it (kept energy, rank). `serve` is vLLM's command for an
    adapter that it would take.
    """

    out: Path
    seconds: float
    bytes_read: int
    bytes_written: int
    reading: float
    writing: float
    peak_memory_bytes: int
    workers: int
    tensors: Mapping[str, int]
    resumed: int
    nonfinite: Mapping[str, Mapping[str, int]]
    differs: Mapping[str, list[str]]
    warnings: tuple[str, ...]
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    serve: str | None = None

    @property
    def rate(self) -> float:
        """Bytes read and written in a second of wall time."""
        return (self.bytes_read + self.bytes_written) / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        return {**asdict(self), "out": str(self.out), "tensors": dict(self.tensors), "rate": self.rate}


@dataclass(frozen=True)
class Progress:
    """How far a run is: bytes of the output written, of how many, and bytes moved in all."""

    written: int
    total: int
    moved: int


def by_treatment(treatments: list[str]) -> dict[str, int]:
    """Return how many tensors each treatment has."""
    return dict(Counter(treatments))
