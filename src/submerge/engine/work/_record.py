"""What is known of a finished task: digests and counts, as a line of the journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from submerge.engine.plan import MergePlan

__all__ = ["TaskRecord", "tally"]


@dataclass(slots=True)
class TaskRecord:
    """One finished range of one output tensor.

    `output` is the digest of the bytes written, `inputs` those of the bytes read from each entry
    of `TensorPlan.read`; `nonfinite` counts NaN and Inf in the output (key -1) and in the inputs
    (key: position in `TensorPlan.members`); `differs` lists the inputs of a `keep` tensor that
    are not equal to the base's; `figures` is what the method says of a matrix; `part` is the digest of
    what a gate keeps of the tensor.
    """

    tensor: int
    task: int
    output: str
    inputs: list[str]
    nonfinite: dict[int, int] = field(default_factory=dict)
    differs: list[int] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    part: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as a line of the journal."""
        line: dict[str, Any] = {"t": self.tensor, "k": self.task, "out": self.output, "in": self.inputs}
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
    def from_json(cls, line: dict[str, Any]) -> TaskRecord:
        """Return the record that `to_json` wrote."""
        return cls(
            line["t"], line["k"], line["out"], list(line["in"]),
            {int(k): int(v) for k, v in line.get("nf", [])}, list(line.get("ne", [])),
            dict(line.get("fig", {})), str(line.get("part", "")),
        )  # fmt: skip


def tally(plan: MergePlan, counts: dict[str, dict[str, int]], record: TaskRecord) -> None:
    """Add a record's counts of NaN and Inf to `counts`: by tensor, then by model or output."""
    tensor = plan.tensors[record.tensor]
    # a journal has them in another order than the run: the models first here, the output last
    for key, count in sorted(record.nonfinite.items(), key=lambda item: (item[0] < 0, item[0])):
        where = "the output" if key < 0 else plan.models[tensor.members[key].model].label
        of_tensor = counts.setdefault(tensor.name, {})
        of_tensor[where] = of_tensor.get(where, 0) + count
