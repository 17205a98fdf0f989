"""What is known of finished work: digests and counts of a range, as a line of the journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["RangeRecord"]


@dataclass(slots=True)
class RangeRecord:
    """One finished range of one output tensor; of an adapter, where nothing is digested, all of the tensor.

    Attributes:
        tensor: its place in the plan.
        range: the range's place in the tensor.
        output: the digest of the bytes written.
        inputs: those of the bytes read from each entry of `TensorPlan.read`.
        nonfinite: counts of NaN and Inf in the output (key `OUTPUT`) and in the inputs (key: position in
            `TensorPlan.members`).
        differs: the inputs of a tensor that is copied which are not equal to the copy.
        figures: what the method says of a matrix.
        part: the digest of what the gate's bank has of the tensor.
    """

    tensor: int
    range: int = 0
    output: str = ""
    inputs: list[str] = field(default_factory=list)
    nonfinite: dict[int, int] = field(default_factory=dict)
    differs: list[int] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    part: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as a line of the journal."""
        line: dict[str, Any] = {"t": self.tensor, "k": self.range, "out": self.output, "in": self.inputs}
        if self.nonfinite:
            line["nf"] = sorted(self.nonfinite.items())
        if self.differs:
            line["ne"] = self.differs
        if self.figures:
            line["fig"] = self.figures
        if self.part:
            line["part"] = self.part
        return line

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> RangeRecord:
        """Return the record that `to_json` wrote."""
        return cls(
            line["t"], line["k"], line["out"], list(line["in"]),
            {int(key): int(count) for key, count in line.get("nf", [])}, list(line.get("ne", [])),
            dict(line.get("fig", {})), str(line.get("part", "")),
        )  # fmt: skip
