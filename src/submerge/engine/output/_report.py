"""What a finished merge says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["MergeReport", "Progress"]


@dataclass(frozen=True)
class MergeReport:
    """The result of `merge`: where it is, what it cost, and what deserves a look.

    Attributes:
        out: the folder.
        seconds: wall time.
        bytes_read: of inputs, counted in every pass.
        bytes_written: of weights.
        reading: share of the workers' time spent waiting for the file system to read, in [0, 1].
        writing: likewise to write.
        peak_memory_bytes: the largest resident set of the process.
        workers: how many there were.
        tensors: how many tensors each treatment has, such as `merge` or `keep`.
        resumed: ranges of tensors that an interrupted run had finished before.
        nonfinite: for a tensor, how many values are NaN or Inf in each model and in the output.
        differs: for a tensor that is copied, the models whose values are other than the base's.
        warnings: what deserves a look.
        figures: for a matrix, what its method says of it (share of energy kept, rank).
        serve: vLLM's command for an adapter that it would take.
        calibration: of weights that were learned before the merge: `loss` (before and after), `steps`,
            `seconds`, `peak_memory_bytes`, how many modules were `unreached`, and `warnings`; else None.

    Examples:
        >>> import submerge
        >>> report = submerge.merge("recipe.yaml", "merged")
        >>> report.tensors, report.bytes_written, report.warnings
        ({'merge': 39}, 398408, ())
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
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    serve: str | None = None
    calibration: Mapping[str, Any] | None = None

    @property
    def rate(self) -> float:
        """Bytes read and written in a second of wall time."""
        return (self.bytes_read + self.bytes_written) / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON; `calibration` only where there was one."""
        found = {**asdict(self), "out": str(self.out), "tensors": dict(self.tensors), "rate": self.rate}
        return found if self.calibration is not None else {k: found[k] for k in found if k != "calibration"}


@dataclass(frozen=True)
class Progress:
    """How far a run is: bytes of the output written, of how many, bytes moved in all, and seconds so far."""

    written: int
    total: int
    moved: int
    seconds: float
