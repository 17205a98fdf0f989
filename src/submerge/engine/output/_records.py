"""The records of a run: what is done of each tensor, and what it all adds up to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from submerge.engine.plan import MergePlan, TensorPlan
from submerge.engine.work import IN_OUTPUT, RangeRecord
from submerge.errors import few
from submerge.store import DIGEST, joined

__all__ = ["Records"]


class Records:
    """The records of finished ranges, by tensor and range; added to from any thread.

    `bank_nonfinite` are the counts of NaN and Inf in tensors of a bank, when that is written.
    """

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._of: dict[int, dict[int, RangeRecord]] = defaultdict(dict)
        self.bank_nonfinite: Mapping[str, Mapping[str, int]] = {}

    def __contains__(self, record: RangeRecord) -> bool:
        """Return whether there is a record of the same range."""
        return record.range in self._of.get(record.tensor, ())

    def add(self, record: RangeRecord) -> None:
        """Keep a record."""
        self._of[record.tensor][record.range] = record

    def done(self, tensor: int) -> frozenset[int]:
        """Return the ranges of a tensor that are finished."""
        return frozenset(self._of.get(tensor, ()))

    def of(self, tensor: int) -> list[RangeRecord]:
        """Return a tensor's records, in the order of its ranges."""
        records = self._of.get(tensor, {})
        return [records[number] for number in sorted(records)]

    def nonfinite(self) -> dict[str, Mapping[str, int]]:
        """Return, by tensor, how many NaN and Inf the output and each input hold, and the bank's tensors."""
        counts: dict[str, dict[str, int]] = {}
        for index, tensor in enumerate(self._plan.tensors):
            for record in self.of(index):
                # a journal has them in another order than the run: the models first here, the output last
                for key, count in sorted(record.nonfinite.items(), key=lambda item: (item[0] < 0, item[0])):
                    where = self._whose(tensor, key)
                    of_tensor = counts.setdefault(tensor.name, {})
                    of_tensor[where] = of_tensor.get(where, 0) + count
        return {**counts, **self.bank_nonfinite}

    def _whose(self, tensor: TensorPlan, key: int) -> str:
        """Return the model that a count of NaN and Inf is of, or that it is the output."""
        return IN_OUTPUT if key < 0 else self._plan.models[tensor.members[key].model].label

    def differs(self) -> dict[str, list[str]]:
        """Return, by tensor that is copied, the models whose values are other than the copy's."""
        labels: dict[str, list[str]] = {}
        for index, tensor in enumerate(self._plan.tensors):
            if inputs := sorted({i for record in self.of(index) for i in record.differs}):
                labels[tensor.name] = [self._plan.models[tensor.inputs[i].model].label for i in inputs]
        return labels

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return, by tensor, what the method says of the matrices that it merged."""
        figures: dict[str, dict[str, Any]] = {}
        for index, tensor in enumerate(self._plan.tensors):
            if (first := self._of.get(index, {}).get(0)) and first.figures:
                figures[tensor.name] = first.figures
        return figures

    def warnings(self) -> list[str]:
        """Return what the method warns of, each sentence once, with the tensors that it is about."""
        names: dict[str, list[str]] = defaultdict(list)
        for name, figures in self.figures().items():
            if warning := figures.get("warning"):
                names[str(warning)].append(name)
        return [f"{few(of)}: {warning}" for warning, of in names.items()]

    def read(self) -> dict[int, dict[str, Any]]:
        """Return, by model, how many of its tensors were read and a digest of all their bytes."""
        read: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for index, tensor in enumerate(self._plan.tensors):
            records = self.of(index)
            for position, source in enumerate(tensor.read):
                if digests := [record.inputs[position] for record in records if record.inputs]:
                    read[source.model].append((tensor.name, joined(digests)))
        return {
            model: {"tensors": len(named), DIGEST: joined([digest for _, digest in sorted(named)])}
            for model, named in read.items()
        }
