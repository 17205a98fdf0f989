"""What a run writes into: all in which a checkpoint and an adapter differ as outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from submerge.engine.output._folder import Output
from submerge.engine.output._records import Records
from submerge.engine.plan import Input, MergePlan, TensorPlan
from submerge.engine.work import (
    ChunkReader,
    Finished,
    Meter,
    MeteredTable,
    Passes,
    RangeRecord,
    adapter_edits,
)
from submerge.store import FileTable, Source, TensorRecord

__all__ = ["OutputTarget"]

W = TypeVar("W")


class OutputTarget(ABC, Generic[W]):
    """Takes the tensors of a plan into an output folder, through a writer of type W that a run holds open.

    Attributes:
        forks: whether workers may be processes, which share no writer's memory.
    """

    forks = False

    def __init__(self, plan: MergePlan, output: Output, meter: Meter) -> None:
        self.plan = plan
        self.output = output
        self.meter = meter

    @property
    @abstractmethod
    def total(self) -> int:
        """The `size` of all records, when all is done."""

    @property
    @abstractmethod
    def bytes_written(self) -> int:
        """Bytes of the output's weight files, when it is complete."""

    @abstractmethod
    def open(self) -> AbstractContextManager[W]:
        """Open the writer."""

    def resume(self) -> Iterable[RangeRecord]:
        """Return the records of an earlier run that still hold."""
        return ()

    @abstractmethod
    def job(
        self, index: int, inputs: FileTable, writer: W, finished: Finished, done: frozenset[int]
    ) -> Passes:
        """Return the job of a tensor, without the ranges that are done; may be called in a forked process."""

    def accept(self, record: RangeRecord) -> None:
        """Make a finished range one that `resume` will find."""
        return

    @abstractmethod
    def size(self, record: RangeRecord) -> int:
        """Return what a finished range adds to the progress."""

    @abstractmethod
    def complete(self, writer: W, records: Records) -> None:
        """Write what can only be written when all tensors are done."""

    @abstractmethod
    def tensors(self, records: Records) -> dict[str, TensorRecord]:
        """Return what submerge.json says of each tensor of the output."""

    def manifest_fields(self, records: Records) -> dict[str, Any]:
        """Return what submerge.json says of the output besides, as fields of `Manifest`."""
        return {}

    def write_side_files(self) -> None:
        """Write what lies in the folder beside the weights."""
        return

    @property
    def serve(self) -> str | None:
        """vLLM's command for the finished folder, where it would take it."""
        return None

    def warnings(self, records: Records) -> list[str]:
        """Return what the run found to be worth a look, beside the plan's warnings."""
        return records.warnings()

    def reader(self, index: int, inputs: FileTable) -> ChunkReader:
        """Return what reads a tensor's inputs, with every read counted."""
        return self._reader(self.plan.tensors[index], inputs)

    def _reader(self, tensor: TensorPlan, inputs: FileTable) -> ChunkReader:
        models, seed = self.plan.models, self.plan.recipe.seed
        sources = [self._source(member, inputs) for member in tensor.read]
        partner = self._reader(tensor.partner, inputs) if tensor.partner else None
        return ChunkReader(tensor, sources, adapter_edits(models, tensor, inputs), seed, partner)

    def _source(self, member: Input, inputs: FileTable) -> Source:
        """Return where to read one input; of a virtual model the reads are counted that it makes itself."""
        model, name = self.plan.models[member.model], member.entry.name
        if model.virtual is not None:
            return model.source(name, MeteredTable(inputs, self.meter))
        return self.meter.source(model.source(name, inputs))
