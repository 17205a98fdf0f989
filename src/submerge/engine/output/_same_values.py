"""Whether weights of a composed model are the base's, bit for bit, by the digests that a run has of them."""

from __future__ import annotations

from dataclasses import dataclass

from submerge.engine.output._records import Records
from submerge.engine.plan import MergePlan
from submerge.engine.work import ranges
from submerge.store import DTYPES, FileTable, range_digest

__all__ = ["SameValues"]


@dataclass(frozen=True)
class SameValues:
    """Compares what was read and written of a plan's tensors, without reading it again where that can be."""

    plan: MergePlan
    records: Records

    def specialist_is_base(self, index: int, model: int) -> bool:
        """Return whether a merged model's own values of a tensor, without its adapter, are the base's."""
        tensor = self.plan.tensors[index]
        member = tensor.inputs[self.plan.participants.index(model)]
        if member.model == self.plan.inputs.reference:  # it stands in where the model has none
            return True
        base = self.plan.inputs.reference_model.tensors[tensor.name]
        return member.entry.dtype == base.dtype and self._read(index, model) == self._base(index)

    def text_is_base(self, index: int) -> bool:
        """Return whether the merged values of a tensor are the base's, rounded to the output's type."""
        tensor = self.plan.tensors[index]
        base = self.plan.inputs.reference_model.tensors[tensor.name]
        if tensor.dtype == base.dtype:
            return [record.output for record in self.records.of(index)] == self._base(index)
        models = dict.fromkeys(member.model for member in tensor.inputs)
        unedited = not any(member.patch for member in tensor.inputs)
        return unedited and all(
            model == self.plan.inputs.reference or self.specialist_is_base(index, model) for model in models
        )

    def _base(self, index: int) -> list[str]:
        """Return the digests of the base's values, by ranges: as they were read, or else of the file."""
        tensor, reference = self.plan.tensors[index], self.plan.inputs.reference
        if any(member.model == reference for member in tensor.read):
            return self._read(index, reference)
        model = self.plan.models[reference]
        size = DTYPES[model.tensors[tensor.name].dtype].itemsize
        with FileTable() as table:
            source = model.source(tensor.name, table)
            return [range_digest(source, r.start, r.stop, size) for r in ranges(tensor.numel, tensor.block)]

    def _read(self, index: int, model: int) -> list[str]:
        """Return the digests of what was read of a model for a tensor, by ranges."""
        members = self.plan.tensors[index].read
        place = next(place for place, member in enumerate(members) if member.model == model)
        return [record.inputs[place] for record in self.records.of(index)]
