"""A checkpoint as the output of a run: shards that are written by ranges, a journal, and a gate's bank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from submerge.engine.output._bank import gate_bank, write_bank_tensors
from submerge.engine.output._checkpoint_files import write_checkpoint_files
from submerge.engine.output._composed_bank import composed_bank
from submerge.engine.output._projector_bank import projector_bank
from submerge.engine.output._records import Records
from submerge.engine.output._target import OutputTarget
from submerge.engine.work import Finished, Passes, Range, RangeRecord, RangeTarget, range_passes, ranges
from submerge.store import (
    DTYPES,
    BankParts,
    BankTensor,
    FileTable,
    ShardWriter,
    TensorEntry,
    TensorRecord,
    joined,
    range_digest,
)

__all__ = ["CheckpointTarget"]

READ_AHEAD = 1 << 24
"""Elements of the next tensor that the system is asked to read early, from each input."""


class CheckpointTarget(OutputTarget[ShardWriter]):
    """Writes shards range by range, and notes each in the journal; at the end the bank of a method's gate."""

    forks = True
    _bank: Mapping[str, TensorRecord] | None = None

    @cached_property
    def parts(self) -> BankParts | None:
        """What the gate's bank is put together from."""
        return BankParts(self.output.folder) if self.plan.gate_record else None

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.plan.entries.values())

    @property
    def bytes_written(self) -> int:
        """Bytes of the shards and of the bank."""
        bank = (self._bank or {}).values()
        return self.plan.bytes_written + sum(DTYPES[t.dtype].nbytes(t.shape) or 0 for t in bank)

    def open(self) -> ShardWriter:
        """Open the shards, which lie there with their sizes."""
        return ShardWriter(self.output.folder, self.plan.shards)

    def resume(self) -> Iterator[RangeRecord]:
        """Yield the journal's records whose bytes are on disk as they were written.

        The journal alone proves nothing: a machine that lost its power may have kept the line and not the
        values. So each range is read and digested again, which is cheaper than any merge.
        """
        with FileTable() as shards:
            for line in self.output.journal.lines:
                record = RangeRecord.from_json(line)
                if self._is_on_disk(record, shards):
                    yield record

    def _is_on_disk(self, record: RangeRecord, shards: FileTable) -> bool:
        if record.part and not (self.parts and self.parts.holds(record.tensor, record.part)):
            return False
        entry, of_record = self._entry(record), self._range(record)
        on_disk = shards.source(replace(entry, file=self.output.folder / str(entry.file)))
        return range_digest(on_disk, of_record.start, of_record.stop, entry.itemsize) == record.output

    def job(
        self, index: int, inputs: FileTable, writer: ShardWriter, finished: Finished, done: frozenset[int]
    ) -> Passes:
        """Return the passes that write a tensor's ranges into its shard."""
        for ahead in self.plan.tensors[index + 1 : index + 2]:
            for i in ahead.read:  # the disk works while this tensor is computed
                inputs.advise(i.entry, 0, min(i.entry.numel, READ_AHEAD))
        entry = self.plan.entries[self.plan.tensors[index].name]
        sink = self.meter.sink(writer)
        target = RangeTarget(index, entry, sink, finished, done=done, bank=self.parts)
        return range_passes(self.reader(index, inputs), target)

    def accept(self, record: RangeRecord) -> None:
        """Note a range in the journal."""
        self.output.journal.append(record.to_json())

    def size(self, record: RangeRecord) -> int:
        """Return the bytes of a range."""
        of_record = self._range(record)
        return (of_record.stop - of_record.start) * self._entry(record).itemsize

    def _entry(self, record: RangeRecord) -> TensorEntry:
        return self.plan.entries[self.plan.tensors[record.tensor].name]

    def _range(self, record: RangeRecord) -> Range:
        tensor = self.plan.tensors[record.tensor]
        return ranges(tensor.numel, tensor.block)[record.range]

    def complete(self, writer: ShardWriter, records: Records) -> None:
        """Write the bank: of a gate its parts, of a composed model its specialists, or the projectors."""
        if self.parts is None:
            return
        bank = write_bank_tensors(self.output.folder, self._bank_tensors(self.parts, records))
        self._bank, records.bank_nonfinite = bank.tensors, bank.nonfinite

    def _bank_tensors(self, parts: BankParts, records: Records) -> Iterator[BankTensor]:
        if self.plan.composition:
            return composed_bank(self.plan, parts, records)
        return projector_bank(self.plan) if self.plan.projectors else gate_bank(self.plan, parts)

    def write_side_files(self) -> None:
        """Write the reference's side files, configuration and index of shards, and those of modalities."""
        write_checkpoint_files(self.plan, self.output.folder)

    def manifest_fields(self, records: Records) -> dict[str, Any]:
        """Return the gate, what its bank holds, and the rows of tables that have others than the base's."""
        tokens = self.plan.tokens
        rows = tokens.vocabulary.rows if tokens and tokens.vocabulary else None
        return {"gate": self.plan.gate_record, "bank": self._bank, "token_rows": rows}

    def tensors(self, records: Records) -> dict[str, TensorRecord]:
        """Return what submerge.json says of each tensor, with the digest of its bytes."""
        return {
            tensor.name: self._record(index, records.of(index))
            for index, tensor in enumerate(self.plan.tensors)
        }

    def _record(self, index: int, of_ranges: list[RangeRecord]) -> TensorRecord:
        tensor = self.plan.tensors[index]
        return TensorRecord(
            dtype=tensor.dtype,
            shape=tensor.shape,
            digest=joined([record.output for record in of_ranges]),
            file=str(self.plan.entries[tensor.name].file),
            treatment=tensor.treatment,
            block=tensor.block * DTYPES[tensor.dtype].itemsize if len(of_ranges) > 1 else None,
            note=tensor.why,
            new=tensor.name in self.plan.inputs.reference_model.aliases,
            figures=of_ranges[0].figures,
        )
